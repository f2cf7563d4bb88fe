"""A namespace of one run's own, so that runs can follow each other and go side by side on one Postgres."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex

import asyncpg

from actorhub import ConfigurationError
from actorhub.storage.postgres.embedded import EmbeddedPostgres


@asynccontextmanager
async def postgres(url: str | None) -> AsyncIterator[str]:
    """Yield `url`, or that of the embedded Postgres under `./.actorhub`, which runs at least as long as the block."""
    if url is not None:
        yield url
        return
    server = EmbeddedPostgres()
    try:
        yield await server.start()
    finally:
        await server.stop()


@asynccontextmanager
async def fresh_namespace(url: str) -> AsyncIterator[str]:
    """Yield a name that no cluster has; what was stored under it is removed afterwards.

    Raises:
        ConfigurationError: the database cannot be reached.
    """
    name = f"flights_{token_hex(6)}"
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ConfigurationError(f"cannot use the database: {error}") from error
    await connection.close(timeout=10)
    try:
        yield name
    finally:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            # Made of letters, digits and underscores just above; a name cannot be a parameter.
            await connection.execute(f"drop schema if exists {name} cascade", timeout=60)
        finally:
            await connection.close(timeout=10)
