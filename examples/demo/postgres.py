"""The Postgres of a run: the one that was given, or an embedded one, which can be crashed."""

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
"""Where a server lies that a demo crashes: others who use the one in `./.actorhub` do not notice."""
_CRASH_SECONDS: Final = 30.0


class Postgres:
    """A server that takes connections at `url`.

    Args:
        url: What asyncpg connects to.
        directory: That of an embedded server; `None`: the server is somebody else's.
    """

    def __init__(self, url: str, directory: Path | None = None) -> None:
        self.url = url
        self._directory = directory

    @property
    def embedded(self) -> bool:
        """Whether it is an embedded server, which can be crashed."""
        return self._directory is not None

    async def crash(self) -> int:
        """End the server as `pg_ctl stop -m immediate` does, and start it again; return the id of what was ended.

        Nothing is flushed and no session is told: the server recovers from its write-ahead log.
        """
        assert self._directory is not None
        file = self._directory / "postgres" / "postmaster.pid"
        postmaster = int(file.read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGQUIT)
        async with asyncio.timeout(_CRASH_SECONDS):
            while file.exists():  # noqa: ASYNC110 - a postmaster that is gone cannot announce it
                await asyncio.sleep(0.01)
        share = EmbeddedPostgres(self._directory)
        await share.start()
        await share.stop()
        return postmaster


@asynccontextmanager
async def postgres(url: str | None, directory: Path) -> AsyncGenerator[Postgres, None]:
    """Yield the server at `url`, or the embedded one in `directory`, which runs at least as long as the block."""
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
    """Yield a name that no cluster has; what was stored under it is removed afterwards.

    So runs can follow each other and go side by side on one Postgres.

    Raises:
        ConfigurationError: the database cannot be reached.
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
    """Remove a schema with all that is in it, if it is there; `name` must be a plain identifier."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(f"drop schema if exists {name} cascade", timeout=60)
    finally:
        await connection.close(timeout=10)
