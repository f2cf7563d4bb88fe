"""A disk under Postgres that is slow, or full: a shim that is preloaded into the server, and how it is told what to do.

It waits before each flush as the file `flush` of a directory says, and refuses writes that make a file longer as the
file `full` says. It is compiled when it is needed.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SHIM: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) dlsym(RTLD_NEXT, name)

static int said(const char *name, char *text, size_t size) {
    static const char *directory = NULL;
    char path[512];
    int before = errno, file;
    ssize_t length;
    if (directory == NULL && (directory = getenv("DISK_CONTROL")) == NULL) return 0;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    file = open(path, O_RDONLY | O_CLOEXEC);
    errno = before;
    if (file < 0) return 0;
    length = read(file, text, size - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    errno = before;
    return 1;
}

static void wait_for_disk(void) {
    char text[64];
    long long least, most;
    struct timespec now, pause;
    if (!said("flush", text, sizeof text) || sscanf(text, "%lld %lld", &least, &most) != 2) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (most > least) least += (now.tv_nsec * 7919LL + getpid() * 104729LL) % (most - least);
    pause.tv_sec = least / 1000000000LL;
    pause.tv_nsec = least % 1000000000LL;
    nanosleep(&pause, NULL);
}

static int is_full(int file, off_t end) {
    char text[64], link[64], path[512];
    struct stat found;
    int before = errno;
    ssize_t length;
    if (file <= 2 || !said("full", text, sizeof text)) return 0;
    if (fstat(file, &found) != 0 || !S_ISREG(found.st_mode) || end <= found.st_size) { errno = before; return 0; }
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    errno = before;
    if (strstr(path, text) == NULL || path[0] != '/' || strncmp(path, "/dev/", 5) == 0) return 0;
    errno = ENOSPC;
    return 1;
}

static size_t size_of(const struct iovec *parts, int count) {
    size_t size = 0;
    for (int number = 0; number < count; number++) size += parts[number].iov_len;
    return size;
}

int fsync(int file) { wait_for_disk(); return ((int (*)(int)) REAL("fsync"))(file); }
int fdatasync(int file) { wait_for_disk(); return ((int (*)(int)) REAL("fdatasync"))(file); }

ssize_t write(int file, const void *data, size_t size) {
    if (file > 2 && is_full(file, lseek(file, 0, SEEK_CUR) + size)) return -1;
    return ((ssize_t (*)(int, const void *, size_t)) REAL("write"))(file, data, size);
}

#define PWRITE(name) \\
    ssize_t name(int file, const void *data, size_t size, off_t at) { \\
        if (is_full(file, at + size)) return -1; \\
        return ((ssize_t (*)(int, const void *, size_t, off_t)) REAL(#name))(file, data, size, at); \\
    }
#define PWRITEV(name) \\
    ssize_t name(int file, const struct iovec *parts, int count, off_t at) { \\
        if (is_full(file, at + size_of(parts, count))) return -1; \\
        return ((ssize_t (*)(int, const struct iovec *, int, off_t)) REAL(#name))(file, parts, count, at); \\
    }
#define POSIX_FALLOCATE(name) \\
    int name(int file, off_t at, off_t size) { \\
        if (is_full(file, at + size)) return ENOSPC; \\
        return ((int (*)(int, off_t, off_t)) REAL(#name))(file, at, size); \\
    }
PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)
"""


class NoShim(Exception):
    """The disk cannot be changed here. The text says why."""


class Disk:
    """The disk of the servers that are started within `preloaded`.

    Args:
        directory: An empty one that the server's user can enter.

    Raises:
        NoShim: there is no way to make one here.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._shim = _compiled(directory)

    def slow(self, least: float, most: float) -> None:
        """Have each flush take so many seconds longer from now on."""
        self._say("flush", f"{least * 1e9:.0f} {most * 1e9:.0f}")

    def fill(self, where: str = "/") -> None:
        """Refuse to make files longer from now on, whose path contains `where`."""
        self._say("full", where)

    def mend(self) -> None:
        """Be quick, and have room."""
        for name in ("flush", "full"):
            (self._directory / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def preloaded(self) -> Iterator[None]:
        """Have the programs that are started in the body use this disk for as long as they run."""
        added = {"LD_PRELOAD": str(self._shim), "DISK_CONTROL": str(self._directory)}
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _say(self, name: str, text: str) -> None:
        said = self._directory / f".{name}"
        said.write_text(text)
        said.chmod(0o644)  # The server may run as another user.
        said.replace(self._directory / name)


def _compiled(directory: Path) -> Path:
    if sys.platform != "linux":
        raise NoShim(f"a server on {sys.platform} takes no LD_PRELOAD")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoShim("there is no C compiler (cc, gcc or clang) for the shim that makes a disk slow")
    directory.chmod(0o755)
    source, shim = directory / "disk.c", directory / "disk.so"
    source.write_text(_SHIM)
    command = [compiler, "-shared", "-fPIC", "-O2", str(source), "-o", str(shim), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoShim(f"{compiler} could not compile the shim: {done.stderr.strip()}")
    shim.chmod(0o755)
    return shim
