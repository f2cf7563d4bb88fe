"""A Postgres whose flushes each take a millisecond longer, like those of a disk that really flushes."""

import contextlib
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from actorhub.storage.postgres.embedded import EmbeddedPostgres
from benchmarks._disk import Disk

FLUSH_SECONDS: Final = 0.001


@contextlib.asynccontextmanager
async def slow_database() -> AsyncGenerator[str, None]:
    """Yield the URL of such a server, in its own directory.

    Raises:
        NoShim: there is no way to make one here.
    """
    with tempfile.TemporaryDirectory(prefix="actorhub-slow-") as directory:
        disk = Disk(Path(directory))
        disk.slow(FLUSH_SECONDS, FLUSH_SECONDS)
        server = EmbeddedPostgres(Path(directory) / "server")
        try:
            with disk.preloaded():
                url = await server.start()
            yield url
        finally:
            await server.stop()
