"""The lock session: one dedicated connection that holds a runner's shard locks."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import asyncpg
import msgspec
from typing_extensions import override

from actorhub.core.address import RunnerInfo, ShardId, lock_key, shard_lock_key
from actorhub.core.errors import ActorhubError, ConfigurationError
from actorhub.storage.ports import SESSION_IDLE_LIMIT, LiveRunner, SessionLost, TableSlice
from actorhub.storage.postgres import dedicated
from actorhub.storage.postgres.connection import Connection, Database, PoolMode, close, deadline
from actorhub.storage.postgres.dedicated import OPERATION_LIMIT, DedicatedSession, application_name
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, POOLER, is_other_era, summary, translate
from actorhub.storage.postgres.queries import queries
from actorhub.storage.postgres.rows import live_runners

_IDLE_MILLISECONDS: Final = round(SESSION_IDLE_LIMIT.total_seconds() * 1000)
_SETTINGS: Final = {**dedicated.SETTINGS, "idle_session_timeout": str(_IDLE_MILLISECONDS)}


class SessionProbe(msgspec.Struct, frozen=True):
    """What a session looked like from the server in one statement."""

    pid: int
    application_name: str
    idle_milliseconds: int
    lock_seen: bool
    """Whether an advisory lock, taken by the statement before, was held by this very session."""


def pooler_symptom(first: SessionProbe, second: SessionProbe, name: str) -> str | None:
    """Return what shows that the two probes did not meet one dedicated server session; `None` if they did."""
    if first.pid != second.pid:
        return f"two statements ran in two server processes ({first.pid} and {second.pid})"
    for probe in (first, second):
        if probe.application_name != name:
            return f"application_name is {probe.application_name!r} instead of {name!r}"
        if probe.idle_milliseconds != _IDLE_MILLISECONDS:
            return f"idle_session_timeout is {probe.idle_milliseconds} ms instead of {_IDLE_MILLISECONDS} ms"
        if not probe.lock_seen:
            return "an advisory lock that was taken is not held by the session that took it"
    return None


async def open_lock_session(
    database: Database, incarnation: str, is_seen: Callable[[int], Awaitable[bool]] | None = None
) -> "PostgresLockSession":
    """Return a new lock session after proving that it has a server process of its own.

    Args:
        database: Where the locks are.
        incarnation: Whose they are.
        is_seen: Given where the other connections go another way: whether they see an advisory lock by its key.

    Raises:
        ConfigurationError: a pooler is in the way, or the other connections lead to another database.
        PersistenceError: Postgres cannot be reached.
    """
    if database.mode is PoolMode.TRANSACTION:
        raise _unfit(database, "every transaction may get another server process")
    try:
        connection = await dedicated.connect(database, incarnation, _SETTINGS)
    except ActorhubError as exc:
        if is_seen is not None and exc.__cause__ is not None and is_other_era(exc.__cause__):
            raise _elsewhere(database) from exc
        raise
    era = "" if database.guard is None else database.guard.era
    try:
        async with deadline(connection, OPERATION_LIMIT):
            key = lock_key(database.namespace, f"probe/{incarnation}")
            await connection.execute("select pg_advisory_lock($1)", key)
            first = await _probe(connection, key)
            second = await _probe(connection, key)
            is_same = is_seen is None or await is_seen(key)
            await connection.execute("select pg_advisory_unlock($1)", key)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as exc:
        connection.terminate()
        raise _unfit(database, f"statements prepared in it are gone ({summary(exc)})") from exc
    except FOREIGN_ERRORS as exc:
        connection.terminate()
        raise translate(exc, "open a lock session") from exc
    except BaseException:
        connection.terminate()
        raise
    if (symptom := pooler_symptom(first, second, application_name(incarnation))) is not None:
        await close(connection)
        raise _unfit(database, symptom)
    if not is_same:
        await close(connection)
        raise _elsewhere(database)
    return PostgresLockSession(connection, database.namespace, first.pid, era)


def _elsewhere(database: Database) -> ConfigurationError:
    return ConfigurationError(
        f"--lock-database leads to {database.place}, and its locks are not seen where --database leads: both must "
        "name one database of one server"
    )


def _unfit(database: Database, symptom: str) -> ConfigurationError:
    return ConfigurationError(f"the lock session at {database.place} cannot hold locks: {symptom}: {POOLER}")


async def _probe(connection: Connection, key: int) -> SessionProbe:
    row = await connection.fetchrow(queries()["session_probe"], key)
    assert row is not None
    return SessionProbe(row["pid"], row["application_name"], row["idle_milliseconds"], row["lock_seen"])


class PostgresLockSession(DedicatedSession):
    """A `LockSession` whose locks are advisory locks of the connection's session at the server.

    The locks vanish with that session. So `_held` is the truth about them: after any failure, or a cancellation in the
    middle of an operation, the connection is ended, which frees whatever it holds.
    """

    def __init__(self, connection: Connection, namespace: str, pid: int, era: str = "") -> None:
        super().__init__(connection, connection.fetch, era)
        self.pid = pid
        """The server process."""
        self._namespace = namespace
        self._held: dict[int, ShardId] = {}

    @property
    @override
    def outlives_process(self) -> bool:
        return False

    @override
    async def heartbeat(self, info: RunnerInfo, only: TableSlice | None = None) -> Sequence[LiveRunner]:
        async with self._turn:
            rows = await self._beat(info, only, None)
            self._check(rows[0]["this_backend"])
        return live_runners(rows)

    @override
    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        wanted = {shard_lock_key(self._namespace, shard): shard for shard in shards}
        async with self._turn:
            # A session lock is re-entrant: taken twice, it would survive its unlock.
            if keys := [key for key in wanted if key not in self._held]:
                for key, taken, backend in await self._fetch("try_lock", keys):
                    self._check(backend)
                    if taken:
                        self._held[key] = wanted[key]
            elif self.lost:
                raise SessionLost(self._loss)
            return [shard for key, shard in wanted.items() if key in self._held]

    @override
    async def unlock(self, shards: Sequence[ShardId]) -> None:
        wanted = {shard_lock_key(self._namespace, shard) for shard in shards}
        async with self._turn:
            if not (keys := [key for key in wanted if key in self._held]):
                if self.lost:
                    raise SessionLost(self._loss)
                return
            missing = await self._fetch("unlock", keys)
            for key in keys:
                del self._held[key]
            if missing:
                self._lose(f"{len(missing)} locks were not held by the session that took them")
                raise SessionLost(self._loss)

    @override
    async def _end(self) -> None:
        # By itself the server would free them a moment after the session's end.
        await self._connection.execute("select pg_advisory_unlock_all()")

    @override
    def _forget(self) -> None:
        self._held.clear()

    def _check(self, backend: int) -> None:
        if backend != self.pid:
            self._lose(f"server process {backend} answered instead of {self.pid}: {POOLER}")
            raise SessionLost(self._loss)
