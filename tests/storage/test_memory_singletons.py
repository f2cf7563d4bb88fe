"""The memory store keeps the promises about checkpoints, singletons and schedules."""

from collections.abc import AsyncIterator

import pytest

from actorhub.conformance.checkpoints import (
    CheckpointWriteSuite,
    CompletionSuite,
    noted,
    owned,
    scope,
    steps,
)
from actorhub.conformance.singletons import BUSY, LeaderSuite, ScheduleSuite, abandoned, leadership, led
from actorhub.conformance.storage import runner
from actorhub.core.errors import PersistenceError
from actorhub.storage.checkpoint_ports import Saved
from actorhub.storage.ports import StoredState
from tests.storage.test_memory import MemoryWorld


@pytest.fixture
async def world() -> AsyncIterator[MemoryWorld]:
    """A memory store and its storages, closed after the test."""
    made = MemoryWorld()
    yield made
    await made.aclose()


class TestMemoryCheckpoints(CheckpointWriteSuite):
    """Checkpoints in memory."""


class TestMemoryCompletions(CompletionSuite):
    """Deferred values in memory."""


class TestMemoryLeaders(LeaderSuite):
    """Leaders in memory."""


class TestMemorySchedules(ScheduleSuite):
    """Schedules in memory."""


async def test_an_unreachable_store_takes_no_notes(world: MemoryWorld) -> None:
    """While the store does not answer, requests fail and nothing is written."""
    storage = await owned(world)
    world.store.available = False
    with pytest.raises(PersistenceError) as failed:
        await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"1"})), "a")
    assert not failed.value.possibly_executed
    with pytest.raises(PersistenceError):
        await storage.checkpoints.load(scope())
    with pytest.raises(PersistenceError):
        await storage.singletons.record(leadership("orders", "ada"), BUSY, heartbeat=True)
    world.store.available = True
    assert await storage.checkpoints.load(scope()) == Saved()


async def test_a_leader_that_was_silent_for_long_leads_no_more(world: MemoryWorld) -> None:
    """By the store's clock: just before the limit its singletons are kept."""
    storage = await led(world)
    session = await storage.open_lock_session("a")
    await session.heartbeat(runner("a"))
    await session.aclose()
    await storage.singletons.lead(leadership(), "127.0.0.1:7000", 0.0)
    world.clock.now += 9.9
    assert await storage.singletons.remove_abandoned() == 0
    world.clock.now += 0.1
    assert await abandoned(storage.singletons) == 1


async def test_a_state_that_was_overwritten_is_as_old_as_said(world: MemoryWorld) -> None:
    """Somebody with psql can write one that is a week old."""
    storage = await world.storage()
    world.store.overwrite(("orders", "ada"), StoredState(1, b"v1", 7 * 86_400.0))
    found = await storage.load_state("orders", "ada")
    assert found is not None
    assert found.age >= 7 * 86_400.0
