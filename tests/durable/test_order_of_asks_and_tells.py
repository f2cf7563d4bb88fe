"""What one process asks and tells an entity, durably and mixed, runs in the order of its sending.

While a shard has no owner, tells are stored for the next one; asks wait for it. `FAULT_SEED` repeats what a generated
test draws.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, TypeAlias

import pytest

from actorhub import Cluster, Hub
from actorhub.testing import MemoryCluster
from tests.durable.entities import Log, read
from tests.support.gates import closed_gates

__all__ = ["closed_gates"]

SEED: Final = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
LOGS: Final = ("log 0", "log 1", "log 2")

Fault: TypeAlias = Callable[[MemoryCluster, random.Random], Awaitable[None]]

hub = Hub()
hub.register(Log)


async def bystander(memory: MemoryCluster) -> Cluster:
    """Start a runner that owns no shard of the logs: it outlives their owners, and can store messages for them."""
    return await memory.start_runner(groups=("bystanders",))


def owners(memory: MemoryCluster) -> list[Cluster]:
    """Return the runners that may own shards of the logs: all but the first."""
    return memory.runners[1:]


async def all_owners_are_killed(memory: MemoryCluster, chance: random.Random) -> None:
    """For about as long as tells wait before they are stored, there is no owner."""
    for runner in owners(memory):
        await memory.kill(runner)
    await asyncio.sleep(chance.uniform(0.2, 0.5))
    await memory.start_runner()


async def an_owner_is_killed(memory: MemoryCluster, chance: random.Random) -> None:
    """The other one takes its shards over, and a new one comes."""
    await memory.kill(chance.choice(owners(memory)))
    await asyncio.sleep(chance.uniform(0.0, 0.3))
    await memory.start_runner()


async def an_owner_is_replaced(memory: MemoryCluster, chance: random.Random) -> None:
    """Shards are handed over, on links of different speed."""
    for runner in owners(memory):
        seconds = chance.choice((0, 0.001, 0.02))
        memory.network.delay(memory.name_of(runner), memory.name_of(memory.runners[0]), seconds=seconds)
        memory.network.delay(memory.name_of(runner), memory.name_of(memory.cluster), seconds=seconds)
    await memory.start_runner()
    await memory.stop(chance.choice(owners(memory)))


FAULTS: Final = (all_owners_are_killed, an_owner_is_killed, an_owner_is_replaced)


class Numbers:
    """One process's numbered messages to one log, and which of them had a due time."""

    def __init__(self, cluster: Cluster, log: str, chance: random.Random) -> None:
        self.cluster = cluster
        self.log = log
        self.chance = chance
        self.count = 0
        self.due: set[str] = set()
        self.kinds: dict[str, str] = {}

    async def send_until(self, is_over: asyncio.Event) -> None:
        """Send some at once, again and again: each task sends before it waits, so they are sent in order."""
        while not is_over.is_set():
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self.chance.randrange(1, 20)):
                    tasks.create_task(self._send())
            await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def _send(self) -> None:
        text = str(self.count)
        self.count += 1
        call = self.cluster.client(Log).options(timeout=timedelta(seconds=20))(self.log).add(text)
        kind = self.kinds[text] = self.chance.choice(("ask", "tell", "tell", "due"))
        if kind == "ask":
            await call
        elif kind == "tell":
            await self.cluster.tell(call)
        else:
            self.due.add(text)
            await self.cluster.tell(call, delay=timedelta(milliseconds=self.chance.randrange(1, 100)))

    async def check(self) -> None:
        """Each came once, and those without a due time in order."""
        await self.cluster.poll_storage()
        came = await read(self.cluster, self.log, self.count, deadline=30)
        assert sorted(came, key=int) == [str(number) for number in range(self.count)], f"FAULT_SEED={SEED}"
        in_order = [int(text) for text in came if text not in self.due]
        late = [pair for pair in zip(in_order, in_order[1:], strict=False) if pair[0] > pair[1]]
        told = [(before, after, self.kinds[str(before)], self.kinds[str(after)]) for before, after in late]
        assert not told, f"FAULT_SEED={SEED}"


@asynccontextmanager
async def numbers_are_sent(cluster: Cluster, chance: random.Random) -> AsyncIterator[None]:
    """Send to all logs during the block; check what came, after it."""
    numbers = [Numbers(cluster, log, chance) for log in LOGS]
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for each in numbers:
            tasks.create_task(each.send_until(is_over))
        yield
        is_over.set()
    for each in numbers:
        await each.check()


@pytest.mark.parametrize("sender", ["client", "runner"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_asks_and_tells_of_one_process_stay_in_order(memory: MemoryCluster, fault: Fault, sender: str) -> None:
    """Through many faults of one kind; a client has a runner store its tells, a runner stores them by itself."""
    chance = random.Random(SEED)
    runner = await bystander(memory)
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    async with numbers_are_sent(client if sender == "client" else runner, chance):
        for _ in range(5):
            await asyncio.sleep(chance.uniform(0.02, 0.2))
            await fault(memory, chance)
