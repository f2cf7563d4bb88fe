"""The key-value stores keep their promises: in memory, in Postgres, and through a runner."""

from collections.abc import AsyncIterator

import pytest

from actorhub import Hub
from actorhub.conformance.key_values import ExpirySuite, KeyValueSuite
from actorhub.core.clock import SystemClock
from actorhub.core.errors import PersistenceError
from actorhub.storage.key_value_ports import KeyValues
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.memory.key_values import MemoryKeyValues
from actorhub.storage.postgres.key_values import PostgresKeyValues
from actorhub.testing import MemoryCluster
from tests.storage.conftest import PostgresWorld
from tests.support.parts import client_of


class TestMemoryKeyValues(KeyValueSuite, ExpirySuite):
    """The key-value store in memory."""

    @pytest.fixture
    def database(self) -> MemoryStore:
        """What two processes share."""
        return MemoryStore(SystemClock())

    @pytest.fixture
    def store(self, database: MemoryStore) -> MemoryKeyValues:
        """As one process has it."""
        return MemoryStorage(database).key_values

    @pytest.fixture
    def other(self, database: MemoryStore) -> MemoryKeyValues:
        """As another process has it."""
        return MemoryStorage(database).key_values


class TestPostgresKeyValues(KeyValueSuite, ExpirySuite):
    """The key-value store in Postgres."""

    @pytest.fixture
    async def store(self, postgres_world: PostgresWorld) -> PostgresKeyValues:
        """As one process has it."""
        return (await postgres_world.storage()).key_values

    @pytest.fixture
    async def other(self, postgres_world: PostgresWorld) -> PostgresKeyValues:
        """As another process has it."""
        return (await postgres_world.storage()).key_values


class TestRemoteKeyValues(KeyValueSuite):
    """The key-value store as clients without a database have it, through runners that host no entity."""

    @pytest.fixture
    async def cluster(self) -> AsyncIterator[MemoryCluster]:
        """Two runners, which take turns."""
        async with MemoryCluster(Hub()) as memory:
            await memory.start_runner()
            await memory.start_runner()
            await memory.settled()
            yield memory

    @pytest.fixture
    async def store(self, cluster: MemoryCluster) -> KeyValues:
        """As one client has it."""
        return await _client_store(cluster)

    @pytest.fixture
    async def other(self, cluster: MemoryCluster) -> KeyValues:
        """As another client has it."""
        return await _client_store(cluster)


async def _client_store(cluster: MemoryCluster) -> KeyValues:
    client = await cluster.client()
    await cluster.settled()
    return client_of(client).key_values


async def test_an_unreachable_memory_store_writes_nothing() -> None:
    """Everything fails, and what was there is there afterwards."""
    database = MemoryStore(SystemClock())
    store = MemoryStorage(database).key_values
    await store.put("k", b"one", None)
    database.available = False
    with pytest.raises(PersistenceError) as failed:
        await store.put("k", b"two", None)
    assert not failed.value.possibly_executed
    with pytest.raises(PersistenceError):
        await store.get("k")
    database.available = True
    stored = await store.get("k")
    assert stored is not None
    assert stored.data == b"one"
