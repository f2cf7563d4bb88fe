"""Waiting for what only the server shows."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from actorhub.conformance.storage import PATIENCE_SECONDS
from tests.storage.conftest import PostgresWorld

_BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


async def until_blocked(observer: "asyncpg.Connection[asyncpg.Record]", count: int = 1) -> None:
    """Return once `count` sessions of the database wait for locks."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await observer.fetchval(_BLOCKED) < count:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def held(world: PostgresWorld, statement: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    """Hold the locks of `statement` in a transaction of its own until the end; yield a connection that observes."""
    blocker, observer = await world.sql(), await world.sql()
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute(statement)
    try:
        yield observer
    finally:
        await transaction.rollback()
