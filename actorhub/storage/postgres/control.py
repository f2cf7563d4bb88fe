"""Statements that are too rare to be batched."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Final

import asyncpg

from actorhub.core.errors import PersistenceError
from actorhub.storage.postgres.connection import deadline
from actorhub.storage.postgres.connections import Connections
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, translate
from actorhub.storage.postgres.queries import queries

STATEMENT_LIMIT: Final = timedelta(seconds=12)
LONG: Final[Mapping[str, str]] = MappingProxyType({"statement_timeout": "10s", "lock_timeout": "2s"})
"""Settings of statements that may take long."""
_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


class Lane:
    """One statement at a time, so that those of one lane keep to one connection and to their order.

    A lost connection fails the statement under way.

    Args:
        connections: Where the statements go.
        settings: Those that these statements have beside the connection's.
        slow: Whether they may take long, and must leave connections to others.
    """

    def __init__(
        self, connections: Connections, settings: Mapping[str, str] = _NO_SETTINGS, *, slow: bool = False
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._slow = slow
        self._turn = asyncio.Lock()

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
                try:
                    return await self._run(query, arguments)
                except asyncpg.InvalidCachedStatementError:
                    # A migration changed a table since it was prepared; nothing has happened yet.
                    return await self._run(query, arguments)
        except (*FOREIGN_ERRORS, PersistenceError) as exc:
            return exc

    async def _run(self, query: str, arguments: Sequence[object]) -> Sequence[asyncpg.Record]:
        async with self._connections.line(slow=self._slow) as line, deadline(line.connection, STATEMENT_LIMIT):
            statement = await line.statement(queries()[query], self._settings)
            return await statement.fetch(*arguments)
