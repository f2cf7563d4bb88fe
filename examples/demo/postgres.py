"""The Postgres of a run: the one that `--database` names, or an embedded one, which the demo can crash."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

import asyncpg

from actorhub import ConfigurationError
from actorhub.storage.postgres.embedded import EmbeddedPostgres

OWN_DIRECTORY: Final = Path(".actorhub") / "crashing"
"""Directory of the server that a demo crashes. Programs that use the one in `./.actorhub` are not affected."""
_CRASH_SECONDS: Final = 30.0


class Postgres:
    """A server that accepts connections at `url`.

    Args:
        url: The URL for asyncpg.
        directory: Directory of an embedded server, or `None` for a server that is not the demo's.
    """

    def __init__(self, url: str, directory: Path | None = None) -> None:
        self.url = url
        self._directory = directory

    @property
    def embedded(self) -> bool:
        """Whether this is an embedded server, which the demo can crash."""
        return self._directory is not None

    async def crash(self) -> int:
        """Stop the server like `pg_ctl stop -m immediate`, and start it again. Return the id of the stopped process.

        Nothing is flushed, and sessions are not notified: the server recovers from its write-ahead log.
        """
        assert self._directory is not None
        file = self._directory / "postgres" / "postmaster.pid"
        postmaster = int(file.read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGQUIT)
        async with asyncio.timeout(_CRASH_SECONDS):
            while file.exists():  # noqa: ASYNC110 - a postmaster cannot announce its own end
                await asyncio.sleep(0.01)
        share = EmbeddedPostgres(self._directory)
        await share.start()
        await share.stop()
        return postmaster


@asynccontextmanager
async def postgres(url: str | None, directory: Path) -> AsyncGenerator[Postgres, None]:
    """Yield the server at `url`, or else the embedded one in `directory`, which runs at least until the block ends."""
    if url is not None:
        yield Postgres(url)
        return
    server = EmbeddedPostgres(directory)
    try:
        yield Postgres(await server.start(), directory)
    finally:
        await server.stop()


@asynccontextmanager
async def fresh_namespace(url: str, prefix: str) -> AsyncGenerator[str, None]:
    """Yield a name that no cluster has. What is stored under it is removed afterwards.

    So several runs can use one Postgres, one after the other or at the same time.

    Raises:
        ConfigurationError: The database cannot be reached.
    """
    name = f"{prefix}_{token_hex(6)}"
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ConfigurationError(f"cannot use the database: {error}") from error
    await connection.close(timeout=10)
    try:
        yield name
    finally:
        await drop_schema(url, name)


async def drop_schema(url: str, name: str) -> None:
    """Remove a schema with everything in it, if it exists. `name` must be a plain identifier."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(f"drop schema if exists {name} cascade", timeout=60)
    finally:
        await connection.close(timeout=10)
