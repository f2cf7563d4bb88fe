"""A Postgres whose flushes each take a millisecond longer, like those of a disk that really flushes.

A shim that is preloaded into the server waits before each `fsync` and `fdatasync`. It is compiled when it is needed.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Final

from actorhub.storage.postgres.embedded import EmbeddedPostgres

FLUSH_SECONDS: Final = 0.001
_SHIM: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static int slow(const char *name, int file) {
    struct timespec pause = {0, NANOSECONDS};
    int (*flush)(int) = (int (*)(int)) dlsym(RTLD_NEXT, name);
    nanosleep(&pause, 0);
    return flush(file);
}

int fsync(int file) { return slow("fsync", file); }
int fdatasync(int file) { return slow("fdatasync", file); }
"""


class NoSlowFlush(Exception):
    """Flushes cannot be slowed down here. The text says why."""


@contextlib.asynccontextmanager
async def slow_database() -> AsyncGenerator[str, None]:
    """Yield the URL of such a server, in its own directory.

    Raises:
        NoSlowFlush: there is no way to make one here.
    """
    with tempfile.TemporaryDirectory(prefix="actorhub-slow-") as directory:
        shim = _compiled(Path(directory))
        server = EmbeddedPostgres(Path(directory) / "server")
        try:
            with _preloaded(shim):
                url = await server.start()
            yield url
        finally:
            await server.stop()


def _compiled(directory: Path) -> Path:
    if sys.platform != "linux":
        raise NoSlowFlush(f"a server on {sys.platform} takes no LD_PRELOAD")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoSlowFlush("there is no C compiler (cc, gcc or clang) for the shim that slows flushes down")
    directory.chmod(0o755)  # The server may run as another user.
    source, shim = directory / "slow.c", directory / "slow.so"
    source.write_text(_SHIM)
    pause = f"-DNANOSECONDS={int(FLUSH_SECONDS * 1e9)}"
    command = [compiler, "-shared", "-fPIC", "-O2", pause, str(source), "-o", str(shim), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoSlowFlush(f"{compiler} could not compile the shim: {done.stderr.strip()}")
    shim.chmod(0o755)
    return shim


@contextlib.contextmanager
def _preloaded(shim: Path) -> Iterator[None]:
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(shim)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before
