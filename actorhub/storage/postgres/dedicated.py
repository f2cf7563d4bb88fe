"""What both kinds of lock sessions have in common: one connection, which is never made again."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final, TypeAlias

import asyncpg
from typing_extensions import override

from actorhub.core.address import RunnerInfo
from actorhub.storage.ports import LockSession, SessionLost, TableSlice
from actorhub.storage.postgres.connection import Connection, Database, close, deadline
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, Cause, cause, refused_connection, summary, translate
from actorhub.storage.postgres.queries import queries

OPERATION_LIMIT: Final = timedelta(seconds=2)
SETTINGS: Final = {
    "statement_timeout": "1500",
    "lock_timeout": "1000",
    # A heartbeat that a crashed server forgets is worth nothing anyway, and must not wait for a slow disk or standby.
    "synchronous_commit": "off",
    # A heartbeat either reads the whole table of runners or a slice of it. Plans made for each would cost more than it.
    "plan_cache_mode": "force_generic_plan",
}

Fetch: TypeAlias = Callable[..., Awaitable[Sequence[asyncpg.Record]]]
"""Runs a statement, given as its text and arguments, in a transaction of its own, and returns its rows."""


def application_name(incarnation: str) -> str:
    """Return what marks the lock session of `incarnation` on the server, which cuts names at 63 bytes."""
    return f"actorhub lock {incarnation}"[:63]


async def connect(database: Database, incarnation: str, settings: Mapping[str, str]) -> Connection:
    """Return the connection of a new lock session.

    Raises:
        ConfigurationError: Postgres refuses it.
        PersistenceError: Postgres cannot be reached.
    """
    name = application_name(incarnation)
    try:
        return await database.connect(name, database.settings({**settings, "application_name": name}))
    except FOREIGN_ERRORS as exc:
        # Waiting does not cure a wrong password.
        if cause(exc) is Cause.PERMANENT:
            raise refused_connection(exc, database.place) from exc
        raise translate(exc, "open a lock session") from exc


class DedicatedSession(LockSession):
    """A lock session that is lost, once and for good, with the first operation that fails or is cut short.

    A connection that came back silently would leave a runner believing in locks that somebody else may have by then.

    Args:
        connection: Serves this session alone.
        fetch: Runs statements over it.
        era: In which the session was opened; empty: not known.
    """

    def __init__(self, connection: Connection, fetch: Fetch, era: str) -> None:
        self._connection = connection
        self._run = fetch
        self._era = era
        self._turn = asyncio.Lock()
        self._loss: str = ""

    @property
    @override
    def lost(self) -> bool:
        if not self._loss and self._connection.is_closed():
            self._lose("the server ended it")
        return bool(self._loss)

    @override
    async def aclose(self) -> None:
        if not self.lost:
            self._loss = "the lock session was closed"
            try:
                async with deadline(self._connection, OPERATION_LIMIT):
                    await self._end()
            except FOREIGN_ERRORS:
                self._connection.terminate()
        self._forget()
        await close(self._connection)

    @abstractmethod
    async def _end(self) -> None:
        """Free every lock on the server."""

    def _forget(self) -> None:
        """Forget what is held, because the session is gone."""

    async def _beat(self, info: RunnerInfo, only: TableSlice | None, token: str | None) -> Sequence[asyncpg.Record]:
        runner = info.runner
        rows = await self._fetch(
            "heartbeat",
            runner.incarnation,
            runner.address,
            info.weight,
            info.groups,
            info.entity_types,
            info.draining,
            info.version,
            None if only is None else only.after,
            0 if only is None else only.most,
            () if only is None else only.besides,
            token,
        )
        if self._era and rows[0]["era"] != self._era:
            # A restore may put other data under a server that runs on.
            self._lose("the database has other data than before: another era began")
            raise SessionLost(self._loss)
        return rows

    async def _fetch(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        if self.lost:
            raise SessionLost(self._loss)
        try:
            async with deadline(self._connection, OPERATION_LIMIT):
                rows = await self._run(queries()[name], *arguments)
        except FOREIGN_ERRORS as exc:
            self._lose(f"the lock session was lost in {name}: {summary(exc)}")
            raise SessionLost(self._loss) from exc
        except asyncio.CancelledError:
            self._lose(f"{name} was cancelled in the middle")
            raise
        if self._loss:
            raise SessionLost(self._loss)
        return rows

    def _lose(self, reason: str) -> None:
        self._loss = self._loss or reason
        self._forget()
        self._connection.terminate()
