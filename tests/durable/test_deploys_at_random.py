"""Deploys at random moments beside all that a handler may do for long: no message that has one attempt loses it."""

import asyncio
import random
from datetime import timedelta

import pytest

from actorhub import ActorhubError, Cluster
from actorhub.core.config import Settings
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.testing import MemoryCluster
from tests.deploys.once import WAYS, Job, hub
from tests.faults import mutants


@pytest.fixture
def slow_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store take its time, so that hand-overs begin and end while answers are under way."""
    flush, chance = MemoryMessages.flush, random.Random(7)

    def later(self: MemoryMessages) -> None:
        asyncio.get_running_loop().call_later(chance.uniform(0.0, 0.03), flush, self)

    monkeypatch.setattr(MemoryMessages, "flush", later)


async def deploys(memory: MemoryCluster, chance: random.Random, over: asyncio.Event) -> None:
    """Replace one runner after the other; one that leaves is not interrupted."""
    while not over.is_set():
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        is_first = chance.random() < 0.5
        if is_first:
            await memory.start_runner()
        await memory.stop(memory.runners[0])
        if not is_first:
            await memory.start_runner()


async def reply_of(client: Cluster, message_id: int) -> int | str:
    """Return the attempt that ended, or the error."""
    try:
        end: int = await client.reply(message_id, timeout=timedelta(seconds=30))
    except ActorhubError as error:
        return f"{type(error).__name__}: {error}"
    return end


async def bad_ends(seed: int) -> list[int | str]:
    """Let messages run beside deploys; return the ends of those that needed an attempt more than they have."""
    chance = random.Random(seed)
    async with MemoryCluster(hub, settings=Settings(shards_per_group=8, grace=timedelta(seconds=0.25))) as memory:
        for _ in range(2):
            await memory.start_runner()
        await memory.settled()
        client = await memory.client()
        told: list[int] = []
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(deploys(memory, chance, over))
            for number in range(40):
                call = getattr(client.client(Job)(f"{number % 25}"), chance.choice(WAYS))
                told.append(await client.tell(call(chance.uniform(0.0, 0.6))))
                await asyncio.sleep(chance.uniform(0.0, 0.05))
            await asyncio.sleep(1.0)
            over.set()
        ends = [await reply_of(client, message_id) for message_id in told]
        return [end for end in ends if end != 1]


@pytest.mark.usefixtures("slow_store")
@pytest.mark.parametrize("seed", range(2))
async def test_deploys_cost_no_attempt_whatever_a_handler_does(seed: int) -> None:
    """Each run is its message's first attempt, though most are cut short and run again elsewhere."""
    assert await bad_ends(seed) == []


@pytest.mark.usefixtures("slow_store")
async def test_runs_that_are_not_given_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With that defect in the product, deploys make dead letters."""
    mutants.apply("runs that go on are not given back", monkeypatch.setattr)
    assert await bad_ends(0) != []
