"""Fixtures that every test may use."""

import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.postgres_server import PostgresServer, PostgresTemplate
from tests.support.processes import starter

pytest_plugins = ("tests.support.alone", "tests.support.clusters")

# How long one example takes says more about what else the machine does. Each test as a whole has a time limit.
settings.register_profile("actorhub", deadline=None)
settings.load_profile("actorhub")


def pytest_collection_finish() -> None:
    """Let the garbage collector leave out what lives as long as the run: it takes a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """End what starts the tests' commands."""
    starter.close()


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresTemplate]:
    """The data that each server of the tests begins with."""
    template = PostgresTemplate()
    yield template
    template.close()


@pytest.fixture(scope="session")
def postgres_server(postgres_template: PostgresTemplate) -> Iterator[PostgresServer]:
    """One real Postgres for the whole session (each worker of xdist has its own): never stop it, others share it."""
    server = PostgresServer(postgres_template)
    yield server
    server.close()


@pytest.fixture
async def postgres_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database, whose contents are gone after the test."""
    url = await postgres_server.create_database()
    yield url
    await postgres_server.drop_database(url)


@pytest.fixture
def own_postgres(postgres_template: PostgresTemplate) -> Iterator[PostgresServer]:
    """A real Postgres of this test alone, to be stopped, crashed and restarted."""
    server = PostgresServer(postgres_template)
    yield server
    server.close()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """An empty directory with a short path that every user can enter, unlike `tmp_path`: for embedded servers."""
    directory = Path(tempfile.mkdtemp(prefix="ah-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)
