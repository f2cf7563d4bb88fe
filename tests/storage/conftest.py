"""Postgres storages of one test."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from actorhub.core.clock import SystemClock
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.schema import migrations


class PostgresWorld:
    """Storages on one empty database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[PostgresStorage] = []
        self._connections: list[asyncpg.Connection[asyncpg.Record]] = []

    async def storage(
        self, *, namespace: str = "actorhub", fence: bool = True, max_connections: int = 10
    ) -> PostgresStorage:
        made = self._new(namespace, fence=fence, max_connections=max_connections)
        self._made.append(made)
        await made.open()
        return made

    def _new(self, namespace: str, *, fence: bool, max_connections: int) -> PostgresStorage:
        return PostgresStorage(
            self.url, namespace=namespace, clock=SystemClock(), fence=fence, max_connections=max_connections
        )

    async def sql(self, namespace: str = "actorhub") -> "asyncpg.Connection[asyncpg.Record]":
        """Return a plain connection in the namespace."""
        made = await asyncpg.connect(self.url, server_settings={"search_path": namespace}, timeout=10)
        self._connections.append(made)
        return made

    async def without_additions(self) -> None:
        """Make the schema as a release does that knows no additions."""
        sql = await self.sql("public")
        await sql.execute(
            "create schema actorhub; set search_path = actorhub; create table migration (number integer primary key, "
            "name text not null, checksum text not null, applied_at timestamptz not null default clock_timestamp());"
            + "".join(step.recorded for step in migrations())
        )

    async def sql_at(self, url: str) -> "asyncpg.Connection[asyncpg.Record]":
        """Return a plain connection to another place."""
        made = await asyncpg.connect(url, statement_cache_size=0, timeout=10)
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
