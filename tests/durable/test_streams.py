"""Streams of durable handlers: they go on at the next owner with the item after the last one that arrived."""

import asyncio

import pytest

from actorhub import ActorhubError, Cluster
from actorhub.testing import MemoryCluster
from tests.durable.entities import Numbers, hub, owner
from tests.support.gates import all_items, failure, gates, soon

__all__ = ["hub"]


async def _three(memory: MemoryCluster) -> Cluster:
    for _ in range(4):
        await memory.start_runner()
    await memory.settled()
    return await memory.client()


@pytest.mark.parametrize("hold_at", [0, 1, 5, 700])
@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_stream_goes_on_after_its_runner(memory: MemoryCluster, hold_at: int, end: str) -> None:
    """Each item comes once, in order, whether its runner died or left."""
    client = await _three(memory)
    taking = soon(all_items(client.client(Numbers)("n").numbers(1000, hold_at)))
    await gates["n"].came()
    ending = soon(getattr(memory, end)(owner(memory, client, Numbers, "n")))
    await gates["n"].came(2)
    gates["n"].open()
    async with asyncio.timeout(10):
        assert await taking == list(range(1000))
    await ending


async def test_a_stream_survives_several_runners(memory: MemoryCluster) -> None:
    """Each one that is lost while items arrive is replaced."""
    client = await _three(memory)
    stream = client.client(Numbers)("n").numbers(5000)
    found: list[int] = []
    async with asyncio.timeout(20):
        async for item in stream:
            found.append(item)
            if item in (100, 2000, 4000):
                await memory.kill(owner(memory, client, Numbers, "n"))
    assert found == list(range(5000))


async def test_a_slow_consumer_loses_nothing_in_a_takeover(memory: MemoryCluster) -> None:
    """What arrived and was not taken yet is neither lost nor sent again."""
    client = await _three(memory)
    stream = client.client(Numbers)("n").numbers(2000)
    first = await anext(stream)
    await asyncio.sleep(0.05)
    await memory.kill(owner(memory, client, Numbers, "n"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        assert [first, *(await all_items(stream))] == list(range(2000))


async def test_a_stream_whose_link_breaks_goes_on(memory: MemoryCluster, runner: Cluster, client: Cluster) -> None:
    """Cut and healed: each item comes once."""
    stream = client.client(Numbers)("n").numbers(3000)
    found = [await anext(stream) for _ in range(10)]
    memory.cut(runner, client)
    await asyncio.sleep(0.05)
    memory.heal(runner, client)
    async with asyncio.timeout(10):
        found += await all_items(stream)
    assert found == list(range(3000))


async def test_a_stream_that_never_gets_on_fails(memory: MemoryCluster) -> None:
    """Without an item in between, a few runners are tried, then the consumer hears of it."""
    client = await _three(memory)
    taking = soon(all_items(client.client(Numbers)("n").numbers(10, 0)))
    async with asyncio.timeout(20):
        for deaths in range(1, 5):
            await gates["n"].came(deaths)
            await memory.kill(owner(memory, client, Numbers, "n"))
        assert isinstance(await failure(taking), ActorhubError)


@pytest.mark.parametrize("hold_at", [5, -1])
async def test_a_stream_goes_on_where_its_entity_moved_to_from_its_consumers_own_runner(
    memory: MemoryCluster, runner: Cluster, hold_at: int
) -> None:
    """In the middle of a step or at a `yield`: each item comes once, and the runner serves what stayed."""
    numbers = runner.client(Numbers)
    ids = [f"n{number}" for number in range(16)]
    streams = [numbers(name).numbers(1000, hold_at) for name in ids]
    firsts = [[await anext(stream)] for stream in streams]
    if hold_at >= 0:
        for name in ids:
            await gates[name].came()
    other = await memory.start_runner()
    await memory.settled()
    moved = [name for name in ids if owner(memory, runner, Numbers, name) is other]
    assert 0 < len(moved) < len(ids)
    for name in ids:
        gates[name].open()
    async with asyncio.timeout(10):
        for first, stream in zip(firsts, streams, strict=True):
            assert first + await all_items(stream) == list(range(1000))
        for name in ids:
            assert await all_items(numbers(name).numbers(3)) == [0, 1, 2]
