"""The memory store keeps the promises about durable messages."""

from collections.abc import AsyncIterator

import pytest

from actorhub.conformance.message_care import CareSuite, InspectionSuite
from actorhub.conformance.message_keys import KeySuite
from actorhub.conformance.message_runs import CommitSuite, FailureSuite, StartSuite
from actorhub.conformance.messages import LoadSuite, StoreSuite, message
from actorhub.conformance.moved_entities import MovedEntitySuite
from actorhub.conformance.storage import SHARDS, runner
from actorhub.conformance.unreadable_messages import UnreadableSuite
from actorhub.core.errors import ConfigurationError, PersistenceError
from tests.storage.test_memory import MemoryWorld


@pytest.fixture
async def world() -> AsyncIterator[MemoryWorld]:
    """A memory store and its storages, closed after the test."""
    made = MemoryWorld()
    yield made
    await made.aclose()


class TestMemoryStore(StoreSuite):
    """Storing in memory."""


class TestMemoryLoad(LoadSuite):
    """Loading from memory."""


class TestMemoryStart(StartSuite):
    """Starting runs in memory."""


class TestMemoryCommit(CommitSuite):
    """Committing runs in memory."""


class TestMemoryFailure(FailureSuite):
    """Failed runs in memory."""


class TestMemoryInspection(InspectionSuite):
    """Inspecting messages in memory."""


class TestMemoryUnreadable(UnreadableSuite):
    """Rows in memory that cannot be read."""


class TestMemoryMovedEntities(MovedEntitySuite):
    """Entities that move to other shards in memory."""


class TestMemoryCare(CareSuite):
    """Cancelling, retrying, purging and forgetting in memory."""


class TestMemoryKeys(KeySuite):
    """Freeing and keeping keys in memory."""


async def test_a_transaction_needs_postgres(world: MemoryWorld) -> None:
    """There is no SQL in memory, and the error says what has."""
    with pytest.raises(ConfigurationError, match="needs Postgres"):
        await (await world.storage()).messages.begin()


async def test_an_unreachable_store_takes_no_messages(world: MemoryWorld) -> None:
    """While the store does not answer, requests fail with an open outcome, and what was stored is there afterwards."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    await storage.messages.store(message(1), "a")
    world.store.available = False
    with pytest.raises(PersistenceError) as failed:
        await storage.messages.store(message(2), "a")
    assert failed.value.possibly_executed
    with pytest.raises(PersistenceError):
        await storage.messages.find(1)
    world.store.available = True
    assert await storage.messages.find(1) is not None


async def test_what_is_queued_in_one_step_is_carried_out_together(world: MemoryWorld) -> None:
    """Nothing happens in the step of the request, everything before a release goes through."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    queued = [storage.messages.store(message(number), "a") for number in (1, 2)]
    assert storage.statistics().waiting == 2
    await storage.release(dict.fromkeys(SHARDS, 1), "a")
    assert [future.result().message_id for future in queued] == [1, 2]
    assert storage.statistics().waiting == 0
