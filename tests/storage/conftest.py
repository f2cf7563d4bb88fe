"""Postgres storages of one test."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from actorhub.core.clock import SystemClock
from actorhub.storage.postgres import PostgresStorage


class PostgresWorld:
    """Storages on one empty database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[PostgresStorage] = []
        self._connections: list[asyncpg.Connection[asyncpg.Record]] = []

    async def storage(self, *, namespace: str = "actorhub", fence: bool = True) -> PostgresStorage:
        made = PostgresStorage(self.url, namespace=namespace, clock=SystemClock(), fence=fence)
        self._made.append(made)
        await made.open()
        return made

    async def sql(self, namespace: str = "actorhub") -> "asyncpg.Connection[asyncpg.Record]":
        """Return a plain connection in the namespace."""
        made = await asyncpg.connect(self.url, server_settings={"search_path": namespace}, timeout=10)
        self._connections.append(made)
        return made

    async def aclose(self) -> None:
        for storage in self._made:
            await storage.aclose()
        for connection in self._connections:
            connection.terminate()


@pytest.fixture
async def postgres_world(postgres_url: str) -> AsyncIterator[PostgresWorld]:
    """Storages on an empty database, closed after the test."""
    made = PostgresWorld(postgres_url)
    yield made
    await made.aclose()
