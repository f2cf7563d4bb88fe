"""Fixtures for tests whose module declares a `hub`: clusters of it, in memory and on a real Postgres."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from actorhub import Cluster
from actorhub.testing import MemoryCluster
from tests.support.postgres_server import PostgresServer


@pytest.fixture
async def memory(request: pytest.FixtureRequest) -> AsyncIterator[MemoryCluster]:
    """An empty cluster in memory."""
    async with MemoryCluster(request.module.hub) as made:
        yield made


@pytest.fixture
async def runner(memory: MemoryCluster) -> Cluster:
    """A first runner; its calls stay inside the process."""
    return await memory.start_runner()


@pytest.fixture
async def client(memory: MemoryCluster, runner: Cluster) -> Cluster:
    """A client of that runner; its calls travel."""
    return await memory.client()


@pytest.fixture(params=["here", "there"])
def cluster(request: pytest.FixtureRequest, runner: Cluster, client: Cluster) -> Cluster:
    """The caller's side: once in the entities' own process, once in another."""
    return runner if request.param == "here" else client


@pytest.fixture(params=["memory here", "memory there", "postgres here", "postgres there"])
async def anywhere(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """The caller's side on the memory cluster, and on a real Postgres and gRPC."""
    hub = request.module.hub
    there = request.param.endswith("there")
    if request.param.startswith("memory"):
        async with MemoryCluster(hub) as made:
            host = await made.start_runner()
            yield await made.client() if there else host
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = await server.create_database()
    async with hub.runner(
        database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=timedelta(seconds=2)
    ) as host:
        if there:
            async with hub.connect(gateway=host.runner.address) as caller:
                yield caller
        else:
            yield host
    await server.drop_database(url)
