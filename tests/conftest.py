"""Fixtures that every test may use."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.postgres_server import PostgresServer

pytest_plugins = ("tests.support.clusters",)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real Postgres for the whole session: never stop it, other tests share it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
async def postgres_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database, gone after the test."""
    url = await postgres_server.create_database()
    yield url
    await postgres_server.drop_database(url)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A real Postgres of this test alone, to be stopped, crashed and restarted."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """An empty directory with a short path that every user can enter, unlike `tmp_path`: for embedded servers."""
    directory = Path(tempfile.mkdtemp(prefix="ah-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)
