"""What the SQL views show about the durable messages of a cluster, as an operator sees it in psql."""

import asyncio
import math
from time import monotonic
from typing import Final

import asyncpg

_PATIENCE: Final = 90.0
"""Seconds without progress after which a wait fails."""
_PAUSE: Final = 0.1


class NotDrained(Exception):
    """Durable messages are left, and no runner makes progress with them."""


class Stored:
    """Reads the views of a namespace.

    Args:
        url: The database.
        namespace: The cluster's.
    """

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._namespace = namespace

    async def drained(self, entity_type: str | None = None) -> float:
        """Wait until no message is waiting. Return the seconds that it took.

        Args:
            entity_type: Count only messages to entities of this type. By default all messages count.

        Raises:
            NotDrained: Their number did not fall for 90 s.
        """
        start = progress = monotonic()
        connection = await self._connect()
        try:
            fewest: float = math.inf
            while True:
                asked = monotonic()
                waiting = await self._waiting(connection, entity_type)
                if waiting == 0:
                    break
                if waiting < fewest:
                    fewest, progress = waiting, monotonic()
                if monotonic() - progress > _PATIENCE:
                    raise NotDrained(f"{waiting:,} messages are left, and none was finished for {_PATIENCE:.0f} s")
                # The view also reads the settled messages, so these queries must not become the server's main work.
                await asyncio.sleep(max(_PAUSE, 5 * (monotonic() - asked)))
        finally:
            await connection.close(timeout=10)
        return monotonic() - start

    async def by_state(self) -> dict[str, int]:
        """Return the number of messages by state."""
        connection = await self._connect()
        try:
            rows = await connection.fetch(
                f"select state::text as state, count(*) as count from {self._namespace}.messages group by 1 order by 1"
            )
        finally:
            await connection.close(timeout=10)
        return {row["state"]: row["count"] for row in rows}

    async def dead_letters(self, limit: int = 5) -> list[str]:
        """Return at most `limit` dead letters, as text."""
        connection = await self._connect()
        try:
            rows = await connection.fetch(
                f"select entity_type, entity_id, handler, attempts, error_type, error_text "
                f"from {self._namespace}.dead_letters order by message_id limit $1",
                limit,
            )
        finally:
            await connection.close(timeout=10)
        return [
            f"{row['entity_type']}/{row['entity_id']}.{row['handler']}: {row['attempts']} attempts, the last one: "
            f"{row['error_type']}: {row['error_text']}"
            for row in rows
        ]

    async def _waiting(self, connection: "asyncpg.Connection[asyncpg.Record]", entity_type: str | None) -> int:
        count: int = await connection.fetchval(
            f"select count(*) from {self._namespace}.messages "
            "where state in ('pending', 'scheduled') and ($1::text is null or entity_type = $1)",
            entity_type,
        )
        return count

    async def _connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(self._url, timeout=10)
