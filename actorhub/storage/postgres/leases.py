"""Lock sessions and shard locks that are rows, for runners that a pooler gives no session of the server."""

from collections.abc import Sequence
from typing import Final

import asyncpg
from typing_extensions import override

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.storage.ports import LEASE, LiveRunner, TableSlice
from actorhub.storage.postgres import dedicated
from actorhub.storage.postgres.connection import Connection, Database, PoolMode, deadline
from actorhub.storage.postgres.connections import Line
from actorhub.storage.postgres.dedicated import OPERATION_LIMIT, DedicatedSession, Fetch
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, translate
from actorhub.storage.postgres.queries import queries
from actorhub.storage.postgres.rows import live_runners

SILENCE_LIMIT: Final = 1.1 * LEASE
"""A session that is silent for this long is ended by whoever wants one of its locks. The runner's lease has run out by
then, and it has given the session up, unless it is frozen."""
_SETTINGS: Final = {
    **dedicated.SETTINGS,
    # What a runner that is frozen in the middle of an operation has locked, its own session above all, is free soon.
    "idle_in_transaction_session_timeout": "2s",
}


async def open_lease_session(database: Database, incarnation: str, token: str) -> "LeaseSession":
    """Return a new lock session, which ends the former ones of `incarnation`.

    Args:
        database: Where the rows are.
        incarnation: Whose session it is.
        token: Identifies it; random.

    Raises:
        ConfigurationError: Postgres refuses the connection.
        PersistenceError: Postgres cannot be reached, or failed.
    """
    connection = await dedicated.connect(database, incarnation, _SETTINGS)
    fetch = _fetch_over(connection, database)
    era = "" if database.guard is None else database.guard.era
    try:
        async with deadline(connection, OPERATION_LIMIT):
            await fetch(queries()["open_lease_session"], token, incarnation)
    except FOREIGN_ERRORS as exc:
        connection.terminate()
        raise translate(exc, "open a lock session") from exc
    except BaseException:
        connection.terminate()
        raise
    return LeaseSession(connection, fetch, era, token)


def _fetch_over(connection: Connection, database: Database) -> Fetch:
    if database.mode is not PoolMode.TRANSACTION:
        return connection.fetch
    line = Line(connection, database)

    async def fetch(sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        return await (await line.statement(sql, _SETTINGS)).fetch(*arguments)

    return fetch


class LeaseSession(DedicatedSession):
    """A `LockSession` that is a row, as its locks are.

    Neither the end of its connection nor that of its process ends it at the server: it does so itself in `aclose`, or a
    later session of the same runner does, or a peer that knows the process gone, or one that finds it silent.
    """

    def __init__(self, connection: Connection, fetch: Fetch, era: str, token: str) -> None:
        super().__init__(connection, fetch, era)
        self._token = token

    @property
    @override
    def outlives_process(self) -> bool:
        return True

    @override
    async def heartbeat(self, info: RunnerInfo, only: TableSlice | None = None) -> Sequence[LiveRunner]:
        async with self._turn:
            return live_runners(await self._beat(info, only, self._token))

    @override
    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        async with self._turn:
            rows = await self._fetch("lock_shards", self._token, *_columns(shards), SILENCE_LIMIT)
        held = {(group, number) for group, number in rows}
        return [shard for shard in dict.fromkeys(shards) if (shard.group, shard.number) in held]

    @override
    async def unlock(self, shards: Sequence[ShardId]) -> None:
        async with self._turn:
            await self._fetch("unlock_shards", self._token, *_columns(shards))

    @override
    async def _end(self) -> None:
        # Behind an operation that is under way, which would fail otherwise, and leave the locks to be found silent.
        async with self._turn:
            await self._run(queries()["close_lease_session"], self._token)


def _columns(shards: Sequence[ShardId]) -> tuple[list[str], list[int]]:
    return [shard.group for shard in shards], [shard.number for shard in shards]
