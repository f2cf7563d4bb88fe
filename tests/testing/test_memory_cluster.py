"""What a memory cluster gives to tests beside its faults."""

import pytest

from actorhub import Entity, Hub
from actorhub.core.config import Settings
from actorhub.testing import MemoryCluster, MemoryFactory, SteppedClock, until


class Counter(Entity):
    def __init__(self) -> None:
        self._count = 0

    async def add(self) -> int:
        self._count += 1
        return self._count


hub = Hub()
hub.register(Counter)


async def test_its_cluster_is_the_first_client() -> None:
    """Others that come later do not change what a test calls through; without one the error says what to do."""
    async with MemoryCluster(hub) as memory:
        with pytest.raises(RuntimeError, match=r"no client: await client\(\) first"):
            _ = memory.cluster
        await memory.start_runner()
        first, second = await memory.client(), await memory.client()
        assert memory.cluster is first
        assert await first.client(Counter)("a").add() == 1
        await memory.stop(first)
        assert memory.cluster is second


async def test_an_async_condition_is_refused() -> None:
    """Its coroutine is true whatever it would return, so that the test would be green."""

    async def never() -> bool:
        return False

    with pytest.raises(TypeError, match="until takes an ordinary function, and this one is async"):
        await until(never)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def test_the_fixture_opens_clusters_that_share_nothing(actorhub_memory: MemoryFactory) -> None:
    """Two of them in one test have a store, a network and an address each."""
    async with actorhub_memory(hub) as one, actorhub_memory(hub) as other:
        for memory in (one, other):
            assert await memory.cluster.client(Counter)("a").add() == 1
        assert one.store is not other.store


async def test_the_fixture_passes_settings_and_clock_on(actorhub_memory: MemoryFactory) -> None:
    """They are those of the memory cluster."""
    clock, settings = SteppedClock(), Settings(shards_per_group=3)
    async with actorhub_memory(hub, settings=settings, clock=clock) as memory:
        await memory.settled()
        assert memory.clock is clock
        assert len(memory.owners()) == 3


async def test_the_fixture_ends_its_cluster_though_the_block_fails(actorhub_memory: MemoryFactory) -> None:
    """The block's error is what the test sees."""
    memories: list[MemoryCluster] = []

    async def fail() -> None:
        async with actorhub_memory(hub) as memory:
            memories.append(memory)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert memories[0].runners == memories[0].clients == []
