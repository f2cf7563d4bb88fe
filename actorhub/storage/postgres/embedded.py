"""The Postgres that serves where no database is given: real, durable, shared by the processes of one directory.

Everything lies in one directory (`./.actorhub`): the data (`postgres`), the server's log, and two lock files.
Processes that use the server hold a shared lock on `postgres.users` for as long as they use it; the kernel takes it
back from a process that is killed, so nothing is ever counted wrong. Whoever leaves and can have the lock alone is the
last, and stops the server. Each user looks after the server meanwhile, and starts it again if it has died.
`postgres.lock` makes those decisions one at a time. A server whose users were all killed stays up until the next user
adopts it, and stops when that one leaves.

Postgres refuses to run as root. Started by root it runs as user `postgres`, else `nobody`, else a user `actorhub` made
for it. Where that user cannot enter the directory, the data lies under `/var/lib/actorhub`, and `postgres` is a link
to it.
"""

import asyncio
import fcntl
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import Context
from hashlib import sha256
from pathlib import Path
from typing import Final

from actorhub.core.backoff import Backoff
from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError
from actorhub.core.logger import get_logger
from actorhub.storage.postgres.local_server import LocalServer
from actorhub.storage.postgres.programs import ROOT_STORE, Account, find_programs, reachable, server_account

_log: Final = get_logger(__name__)

_LOOK_SECONDS: Final = 1.0
_BACKOFF: Final = Backoff(1.0, 30.0)
_AT_ONCE_SECONDS: Final = 2.0
_TURN_SECONDS: Final = 150.0
"""How long to wait for others that start or stop the server: longer than both can take."""
_locks: Final[set[int]] = set()
"""Descriptors of the lock files that this process has open."""


def _close_inherited() -> None:
    """Close a parent's lock files: it would hold its locks for as long as its child lives, even if it is killed."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_close_inherited)


class EmbeddedPostgres:
    """A share in the directory's Postgres server; several may exist in a process.

    Args:
        directory: Where data, log and locks are kept between runs; made if missing.
    """

    def __init__(self, directory: Path = Path(".actorhub")) -> None:
        self._directory = directory.absolute()
        self._clock = SystemClock()
        self._pause = threading.Event()
        self._stopped = False
        self._joining = False
        self._keeper: asyncio.Task[None] | None = None
        self._users: int | None = None
        self._server: LocalServer | None = None

    async def start(self) -> str:
        """Use the server, starting it if nobody has, and return its URL for asyncpg once it takes connections.

        Cancelled, it leaves again before it returns. Use each object once.

        Raises:
            ConfigurationError: there is no Postgres to start, or it does not start; says why and what to do.
        """
        try:
            url = await asyncio.to_thread(self._join)
        except BaseException:
            # What start has to say comes first; a server that cannot be stopped either is in the same log.
            with suppress(ConfigurationError):
                await self.stop()
            raise
        self._keeper = asyncio.Task(self._keep(), name="actorhub embedded Postgres", context=Context())
        return url

    async def stop(self) -> None:
        """Stop using the server; the last to leave shuts it down cleanly. Can be called twice, and before `start`.

        Raises:
            ConfigurationError: the server did not end in time; quotes the end of its log.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        await asyncio.to_thread(self._leave)

    def leave_at_once(self) -> None:
        """Tell the server to stop if nobody else uses it, without waiting for that: this process is about to end."""
        end = self._clock.monotonic() + _AT_ONCE_SECONDS
        # One that is just being started could not be told yet.
        while self._joining and (self._server is None or self._server.pid is None) and self._clock.monotonic() < end:
            self._pause.wait(0.02)
        if self._users is None or self._users not in _locks or self._server is None:
            return
        try:
            # Whoever comes now waits for this lock until this process has ended, and starts the server again.
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # others use it
        self._server.tell_to_stop("fast")

    async def _keep(self) -> None:
        """Start the server again whenever it has died, as the kernel lets it where memory is short."""
        failures = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS + (_BACKOFF.delay(failures, self._clock.random()) if failures else 0))
            try:
                if await asyncio.to_thread(self._restarted):
                    _log.warning("the Postgres in %s had died, and was started again", self._directory)
                failures = 0
            except ConfigurationError as exc:
                failures += 1
                _log.error("the Postgres in %s has died, and does not start again: %s", self._directory, exc)

    def _restarted(self) -> bool:
        if self._server is None or self._server.pid is not None:
            return False
        self._join()
        return True

    def _join(self) -> str:
        self._joining = True
        try:
            return self._started()
        finally:
            self._joining = False

    def _started(self) -> str:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._turn():
                if self._stopped:
                    raise ConfigurationError("this EmbeddedPostgres was stopped: make a new one")
                if self._users is None:
                    users = self._open("postgres.users")
                    try:
                        self._wait_for(users, fcntl.LOCK_SH)
                    except ConfigurationError:
                        _close(users)
                        raise
                    self._users = users
                self._server = self._server or self._find_server()
                self._server.initialize()
                self._server.start()
                return self._server.url
        except OSError as exc:
            raise ConfigurationError(f"cannot keep a Postgres in {self._directory}: {exc}") from exc

    def _leave(self) -> None:
        self._stopped = True
        if not self._directory.exists():
            return
        with self._turn():
            users, self._users = self._users, None
            if users is None or users not in _locks:
                return  # it never came that far, or this is a child of the process that did
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._server is not None:
                    self._server.stop()
            except BlockingIOError:
                pass  # others still use the server: the last of them stops it
            finally:
                _close(users)

    @contextmanager
    def _turn(self) -> Generator[None, None, None]:
        """Be the only one, of all processes and threads, that starts or stops the directory's server."""
        try:
            lock = self._open("postgres.lock")
        except OSError as exc:
            raise ConfigurationError(f"cannot use the Postgres in {self._directory}: {exc}") from exc
        try:
            self._wait_for(lock, fcntl.LOCK_EX)
            yield
        finally:
            _close(lock)

    def _open(self, name: str) -> int:
        lock = os.open(self._directory / name, os.O_RDWR | os.O_CREAT, 0o644)
        _locks.add(lock)
        return lock

    def _wait_for(self, lock: int, operation: int) -> None:
        deadline = self._clock.monotonic() + _TURN_SECONDS
        is_leaving = self._stopped
        while True:
            try:
                fcntl.flock(lock, operation | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if self._stopped and not is_leaving:
                    raise ConfigurationError("this EmbeddedPostgres was stopped while it started") from None
                if self._clock.monotonic() > deadline:
                    raise ConfigurationError(
                        f"another process has been starting or stopping the Postgres in {self._directory} for "
                        f"{_TURN_SECONDS:.0f} s: see {self._log}"
                    ) from None
            self._pause.wait(0.02)

    @property
    def _log(self) -> Path:
        return self._directory / "postgres.log"

    def _find_server(self) -> LocalServer:
        data = self._directory / "postgres"
        account = server_account(data)
        if account is not None:
            data = self._reachable_data(data, account)
        version = data / "PG_VERSION"
        major = int(version.read_text()) if version.exists() else None
        try:
            programs = find_programs(account, major)
        except ConfigurationError as exc:
            if major is None:
                raise
            raise ConfigurationError(
                f"the data in {data} was made by Postgres {major}, and only programs of that version read it: {exc}, "
                f"or remove {data} to start empty"
            ) from exc
        return LocalServer(data, programs, self._log)

    def _reachable_data(self, data: Path, account: Account) -> Path:
        """Where the data lies: in the directory, unless the server's user cannot enter it."""
        if data.is_symlink():
            elsewhere = data.readlink()
        elif reachable(self._directory, account):
            return data
        else:
            name = sha256(os.fsencode(self._directory.resolve())).hexdigest()[:16]
            elsewhere = ROOT_STORE / name / "postgres"
            data.symlink_to(elsewhere)
        elsewhere.parent.mkdir(parents=True, exist_ok=True)
        for directory in (ROOT_STORE, elsewhere.parent):
            directory.chmod(0o755)
        return elsewhere


def _close(lock: int) -> None:
    _locks.discard(lock)
    os.close(lock)
