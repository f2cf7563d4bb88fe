"""Fixtures for pytest, which finds them by itself where actorhub is installed.

- `actorhub_memory` opens a cluster in memory: `async with actorhub_memory(hub) as memory:`
- `actorhub_postgres` is the URL of a Postgres server that lives as long as the session, or the xdist worker.
- `actorhub_database` is the URL of an empty database on that server, for one test.

None of them is a coroutine: they work with pytest-asyncio in both modes, with anyio, and where a test calls
`asyncio.run` itself. `-p no:actorhub` does without them.
"""

from collections.abc import Iterator
from contextlib import closing

import pytest

from actorhub.testing.memory_factory import MemoryFactory, open_memory

# The suites are modules of tests in all but their names: their assertions should say what they compared.
pytest.register_assert_rewrite("actorhub.conformance")


@pytest.fixture
def actorhub_memory() -> MemoryFactory:
    """What opens memory clusters, each with one runner and one client, in an `async with` block."""
    return open_memory


@pytest.fixture(scope="session")
def actorhub_postgres() -> Iterator[str]:
    """The URL of a Postgres server, with production's settings, that is made for this session and gone with it.

    To use a server of your own, define a fixture of this name in your `conftest.py` that returns its URL; the user in
    it must be allowed to create databases.
    """
    from actorhub.testing.postgres import TemporaryPostgres  # noqa: PLC0415 - asyncpg loads when first used

    with closing(TemporaryPostgres()) as server:
        yield server.url


@pytest.fixture
def actorhub_database(actorhub_postgres: str) -> Iterator[str]:
    """The URL of an empty database, dropped after the test together with whatever is still connected to it."""
    from actorhub.testing.postgres import create_database, drop_database  # noqa: PLC0415 - as above

    url = create_database(actorhub_postgres)
    yield url
    drop_database(actorhub_postgres, url)
