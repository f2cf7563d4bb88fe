"""One Postgres server on this machine: made, started, stopped and found again by its data directory alone."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, Literal
from urllib.parse import quote

from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.programs import Programs

StopMode = Literal["smart", "fast", "immediate"]

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "listen_addresses": "",
        "logging_collector": "off",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "max_connections": "200",
        "max_locks_per_transaction": "256",
        "shared_buffers": "128MB",
    }
)
"""No TCP; durable; a lock table for 10,000 shards and more. They beat what postgresql.conf says."""

_PORT: Final = 5432
_SOCKET: Final = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_BYTES: Final = 103
"""What `sun_path` holds on the narrowest system (macOS), without its final zero."""
_NO_PROCESS: Final = 2**22
"""An id that no process can have: one more than the greatest (Linux: PID_MAX_LIMIT; elsewhere they are smaller)."""
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
_LOG_BYTES: Final = 16 * 1024 * 1024
_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = MappingProxyType(
    {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
)


class LocalServer:
    """A server with its data in `data` and its log in `log`, listening on a Unix socket that only its user can reach.

    Methods block. They are safe to call from one process at a time: who shares a directory must take turns.
    Whoever can enter the socket's directory (mode 0700: the server's user, and root) is the superuser `postgres`.
    """

    def __init__(self, data: Path, programs: Programs, log: Path) -> None:
        self._data = data.resolve()
        self._programs = programs
        self._log = log
        self._clock = SystemClock()
        self._pause = threading.Event()

    @property
    def url(self) -> str:
        """What asyncpg connects to."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_directory), safe='/')}&port={_PORT}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; `None` when no such process lives."""
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].isdigit() and self._lives(int(lines[0])) else None

    @property
    def ready(self) -> bool:
        """Whether the server takes connections, if it is a standby only to read.

        A listening socket alone says nothing: it outlives a killed postmaster in its orphans, for as long as they live.
        """
        lines = self._pid_file()
        return len(lines) > 7 and lines[7].strip() in ("ready", "standby") and self.pid is not None and self._listens()

    def initialize(self) -> None:
        """Make the data directory unless it is there; either it is complete or nothing is there.

        Raises:
            ConfigurationError: `initdb` failed; quotes it.
        """
        if (self._data / "PG_VERSION").exists():
            return
        partial = self._data.with_name(f"{self._data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._make_private(partial)
        arguments = ["--username=postgres", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"]
        with self._open_log() as log:
            start = log.tell()
            if self._run("initdb", f"--pgdata={partial}", *arguments, output=log) != 0:
                raise ConfigurationError(f"initdb could not make {self._data}: {self._tail(start)}")
        partial.rename(self._data)

    def start(self) -> None:
        """Start the server unless it runs, and wait until it takes connections.

        A server that is just starting is waited for, one that is just stopping is waited for and started again.

        Raises:
            ConfigurationError: it did not come up in time; quotes the end of its log.
        """
        deadline = self._clock.monotonic() + _START_SECONDS
        while not self.ready:
            if self.pid is None and not self._listens() and self._launch():
                continue
            if self._clock.monotonic() > deadline:
                raise ConfigurationError(f"Postgres in {self._data} was not ready in time: {self._tail()}")
            self._pause.wait(0.02)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server if it runs, and wait until it is gone.

        Raises:
            ConfigurationError: it did not end in time; quotes the end of its log.
        """
        deadline = self._clock.monotonic() + _STOP_SECONDS
        pid = self.tell_to_stop(mode)
        while self.pid is not None:
            if self._clock.monotonic() > deadline:
                raise ConfigurationError(f"Postgres in {self._data} (pid {pid}) did not stop: {self._tail()}")
            self._pause.wait(0.01)

    def tell_to_stop(self, mode: StopMode) -> int | None:
        """Have the server stop if it runs, and wait for nothing; return its process id."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _SIGNALS[mode])
        return pid

    def _launch(self) -> bool:
        """Start it; `False` if processes of a killed postmaster still hold its memory and it should be tried again."""
        self._disown_pid_file()
        directory = self._socket_directory
        if directory != self._data:
            self._make_private(directory)
        settings = {**SETTINGS, "port": str(_PORT), "unix_socket_permissions": "0700"}
        settings["unix_socket_directories"] = f'"{directory}"'
        options = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        arguments = [f"--pgdata={self._data}", "--wait", f"--timeout={_START_SECONDS:.0f}", f"--options={options}"]
        with self._open_log() as log:
            start = log.tell()
            # pg_ctl leaves the postmaster to init, in a session of its own: no zombie here, no Ctrl-C there.
            if self._run("pg_ctl", "start", *arguments, output=log) == 0:
                return True
        said = self._tail(start)
        if "is still in use" in said:
            return False
        raise ConfigurationError(f"Postgres in {self._data} did not start: {said}")

    def _run(self, program: str, *args: str, output: IO[bytes]) -> int:
        try:
            return self._programs.run(program, *args, timeout=_START_SECONDS + 5, output=output)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ConfigurationError(f"{self._programs.bin / program} did not run: {exc}") from exc

    @property
    def _socket_directory(self) -> Path:
        path = str(self._data)
        # asyncpg reads a comma as the start of the next host.
        if len(os.fsencode(path)) + 1 + len(_SOCKET) <= _SOCKET_PATH_BYTES and "," not in path and '"' not in path:
            return self._data
        return Path("/tmp") / f"actorhub-{sha256(os.fsencode(path)).hexdigest()[:16]}"  # noqa: S108 - see _make_private

    def _make_private(self, directory: Path) -> None:
        """Make a directory that is the server's user's alone; refuse one that somebody else put there."""
        account = self._programs.account
        try:
            directory.mkdir(mode=0o700)
            if account:
                os.chown(directory, account.uid, account.gid)
        except FileExistsError:
            pass  # whose it is decides, below
        found = directory.lstat()
        if found.st_uid != (account.uid if account else os.geteuid()) or found.st_mode & 0o170077 != 0o040000:
            raise ConfigurationError(f"{directory} is not a private directory of the server's user: remove it")

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _disown_pid_file(self) -> None:
        """Let Postgres see that a killed postmaster is dead though its id is not free: a zombie's, or another's by now.

        The file is kept, because Postgres finds in it whether orphans of that postmaster still use the data.
        """
        if lines := self._pid_file():
            (self._data / "postmaster.pid").write_text("\n".join([str(_NO_PROCESS), *lines[1:], ""]))
            (self._socket_directory / f"{_SOCKET}.lock").unlink(missing_ok=True)

    def _lives(self, pid: int) -> bool:
        """Whether the process is a postmaster of this data: after a crash of the host its id may be anybody's."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's process: alive, and its command line tells what it is
        try:
            # Empty for a zombie, and readable where /proc/*/cwd is not: root in a container may not trace others.
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return not Path("/proc/self/cmdline").exists()
        return os.fsencode(self._data) in command.split(b"\0")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._socket_directory / _SOCKET))
            except OSError:
                return False
        return True

    def _open_log(self) -> IO[bytes]:
        with contextlib.suppress(FileNotFoundError):
            if self._log.stat().st_size > _LOG_BYTES:
                self._log.replace(self._log.with_suffix(".old.log"))
        return os.fdopen(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

    def _tail(self, start: int = 0) -> str:
        """The last lines of the log since `start`, as one indented block under its path."""
        try:
            said = self._log.read_bytes()[start:].decode(errors="replace").splitlines()[-15:]
        except FileNotFoundError:
            said = []
        return f"the end of {self._log} says\n" + "\n".join(f"    {line}" for line in said)
