"""Statements that are too rare to be batched, over one connection that is made when it is needed."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Final

import asyncpg

from actorhub.core.errors import PersistenceError
from actorhub.storage.postgres.connection import Connection, Database, close, deadline
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, translate
from actorhub.storage.postgres.queries import queries

STATEMENT_LIMIT: Final = timedelta(seconds=12)
_SETTINGS: Final = {"statement_timeout": "10s", "lock_timeout": "2s"}


class ControlConnection:
    """One statement at a time; a lost connection fails the statement under way, the next one connects again."""

    def __init__(self, database: Database, name: str, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._database = database
        self._name = name
        self._settings = {**_SETTINGS, **settings}
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            ConfigurationError: it failed; says what to do.
        """
        async with self._turn:
            self._connection = await self._database.first_connect(self._name, self._settings)
            self._closed = False

    async def fetch(self, doing: str, query: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Return the rows of the named query.

        Raises:
            PersistenceError: it failed; its cause is asyncpg's exception.
        """
        # In a task of its own: a handler that is terminated while it waits here takes no further step, and must not
        # keep the connection for itself.
        async with asyncio.TaskGroup() as tasks:
            outcome = tasks.create_task(self._outcome(query, arguments))
        found = outcome.result()
        if not isinstance(found, BaseException):
            return found
        if isinstance(found, FOREIGN_ERRORS):
            raise translate(found, doing) from found
        raise found

    async def _outcome(
        self, query: str, arguments: Sequence[object]
    ) -> Sequence[asyncpg.Record] | BaseException:  # what `FOREIGN_ERRORS` holds
        """Return the rows, or what the statement failed with: raised here, it would come out as an `ExceptionGroup`."""
        try:
            async with self._turn:
                connection = await self._ready()
                async with deadline(connection, STATEMENT_LIMIT):
                    return await connection.fetch(queries()[query], *arguments)
        except (*FOREIGN_ERRORS, PersistenceError) as exc:
            return exc

    async def aclose(self) -> None:
        """End the connection; a statement under way fails."""
        self._closed = True
        await close(self._connection)

    async def _ready(self) -> Connection:
        if self._closed:
            raise PersistenceError("the storage is closed")
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.connect(self._name, self._settings)
        return self._connection
