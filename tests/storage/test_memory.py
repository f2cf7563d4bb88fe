"""The memory store keeps the promises, and its faults do what they say."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from actorhub.conformance.slots import SliceSuite, SlotSuite
from actorhub.conformance.storage import (
    SHARDS,
    OwnershipSuite,
    StateSuite,
    commit,
    lock_session,
    outcomes,
    runner,
)
from actorhub.conformance.takeovers import TakeoverSuite
from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.ports import SESSION_IDLE_LIMIT, SessionLost, StoredState


class SteppedClock(SystemClock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.monotonic = lambda: self.now


class MemoryWorld:
    """Storages on one memory store."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.store = MemoryStore(self.clock)
        self._made: list[MemoryStorage] = []

    async def storage(self) -> MemoryStorage:
        made = MemoryStorage(self.store)
        await made.open()
        self._made.append(made)
        return made

    async def aclose(self) -> None:
        for storage in self._made:
            await storage.aclose()


@pytest.fixture
async def world() -> AsyncIterator[MemoryWorld]:
    """A memory store and its storages, closed after the test."""
    made = MemoryWorld()
    yield made
    await made.aclose()


class TestMemoryOwnership(OwnershipSuite):
    """Ownership on the memory store."""


class TestMemorySlots(SlotSuite, SliceSuite):
    """Slots on the memory store."""


class TestMemoryTakeovers(TakeoverSuite):
    """Takeovers on the memory store."""


class TestMemoryState(StateSuite):
    """State on the memory store."""


async def test_a_silent_session_ends_at_the_idle_limit(world: MemoryWorld) -> None:
    """The store's clock alone decides: just before the limit the locks are held, at it they are free."""
    storage = await world.storage()
    async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
        await one.try_lock(SHARDS)
        world.clock.now += SESSION_IDLE_LIMIT.total_seconds() - 0.1
        assert await two.try_lock(SHARDS) == []
        world.clock.now += 0.1
        assert await two.try_lock(SHARDS) == SHARDS
        assert one.lost


async def test_a_heartbeat_keeps_a_session_alive(world: MemoryWorld) -> None:
    """A session that speaks keeps its locks for as long as it likes."""
    storage = await world.storage()
    async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
        await one.try_lock(SHARDS)
        for _ in range(5):
            world.clock.now += SESSION_IDLE_LIMIT.total_seconds() - 0.5
            await one.heartbeat(runner("a"))
            await two.heartbeat(runner("b"))
        assert await two.try_lock(SHARDS) == []


async def test_a_thawed_session_finds_itself_lost(world: MemoryWorld) -> None:
    """What a frozen session was about to do fails once it goes on after the store ended it."""
    storage = await world.storage()
    async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
        await one.try_lock(SHARDS)
        assert world.store.freeze_sessions("a") == 1
        async with asyncio.TaskGroup() as tasks:
            heartbeat = tasks.create_task(_loses(one.heartbeat(runner("a"))))
            await asyncio.sleep(0)
            for _ in range(2):
                world.clock.now += SESSION_IDLE_LIMIT.total_seconds() / 2
                await two.heartbeat(runner("b"))
            assert await two.try_lock(SHARDS) == SHARDS
            world.store.thaw_sessions("a")
        assert heartbeat.result()
        assert one.lost


async def test_a_session_thawed_in_time_goes_on(world: MemoryWorld) -> None:
    """A short freeze only delays."""
    storage = await world.storage()
    async with lock_session(storage, "a") as one:
        world.store.freeze_sessions("a")
        async with asyncio.TaskGroup() as tasks:
            lock = tasks.create_task(one.try_lock(SHARDS))
            await asyncio.sleep(0)
            world.store.thaw_sessions("a")
        assert lock.result() == SHARDS


async def test_an_unreachable_store_fails_everything_and_loses_sessions(world: MemoryWorld) -> None:
    """While the store does not answer, requests fail, and what was committed is there afterwards."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    async with lock_session(storage, "a") as session:
        world.store.available = False
        [failure] = await outcomes(storage, [commit("ada", 2)], "a")
        assert type(failure) is PersistenceError
        with pytest.raises(PersistenceError):
            await storage.shards()
        with pytest.raises(SessionLost):
            await session.heartbeat(runner("a"))
        with pytest.raises(ConfigurationError):
            await MemoryStorage(world.store).open()
    world.store.available = True
    assert await storage.load_state("orders", "ada") == StoredState(1, b"v1")


async def test_a_restart_of_the_store_ends_sessions_and_keeps_data(world: MemoryWorld) -> None:
    """Locks are gone, epochs and states stay."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
        await one.try_lock(SHARDS)
        world.store.restart()
        assert one.lost
        assert two.lost
    assert {row.epoch for row in await storage.shards()} == {1}


async def _loses(operation: object) -> bool:
    with pytest.raises(SessionLost):
        await operation  # type: ignore[misc]
    return True
