"""Links between random processes are cut and healed under load: nothing is lost, doubled or out of order."""

import asyncio
import random
from collections import Counter

import pytest

from actorhub import Cluster, RunnerUnavailable
from actorhub.testing import MemoryCluster, until
from tests.partitions.entities import Desk, Ledger, hub

__all__ = ["hub"]

PROCESSES = 4
CALLERS = 12


class Caller:
    """Sends numbers to an entity of its own, one after the other, and knows what it was told of each."""

    def __init__(self, cluster: Cluster, name: str, *, durable: bool) -> None:
        self.cluster = cluster
        self.durable = durable
        self.sure: list[int] = []
        self.unsure: list[int] = []
        self.errors: Counter[str] = Counter()
        self.stopped = False
        self._ledger, self._desk = cluster.client(Ledger)(name), cluster.client(Desk)(name)
        self._number = 0

    async def run(self) -> None:
        """Call until stopped."""
        while not self.stopped:
            await self.call()

    async def call(self) -> None:
        """Make one call."""
        self._number += 1
        number = self._number
        call = self._ledger.enter(number) if self.durable else self._desk.note(number)
        try:
            await (call if number % 2 else self.cluster.tell(call))
        except RunnerUnavailable as error:
            self.errors[type(error).__name__] += 1
            if error.possibly_executed:
                self.unsure.append(number)
        else:
            self.sure.append(number)

    async def check(self) -> None:
        """Compare what the entity noted with what this caller was told."""
        noted: list[int] = []

        async def has_all() -> bool:
            noted[:] = await (self._ledger.entries() if self.durable else self._desk.notes())
            return set(self.sure) <= set(noted)

        async with asyncio.timeout(20):
            while not await has_all():
                await asyncio.sleep(0.02)
        assert len(set(noted)) == len(noted), "a call ran twice"
        assert set(noted) <= {*self.sure, *self.unsure}, "a call ran that is said not to have run"
        sure = [number for number in noted if number in set(self.sure)]
        assert sure == sorted(sure), "calls overtook each other"


@pytest.mark.parametrize("seed", range(4))
async def test_random_cuts_lose_double_and_reorder_nothing(memory: MemoryCluster, seed: int) -> None:
    """Volatile calls fail honestly, durable ones do not fail at all, and in the end everything is served."""
    chance = random.Random(seed)
    runners = [await memory.start_runner() for _ in range(PROCESSES)]
    clients = [await memory.client() for _ in range(2)]
    await memory.settled()
    everybody = [*runners, *clients]
    pairs = [(a, b) for a in everybody for b in runners if a is not b]
    callers = [Caller(chance.choice(everybody), f"c{n}", durable=n % 2 == 0) for n in range(CALLERS)]
    for source, target in pairs:
        memory.network.delay(memory.name_of(source), memory.name_of(target), seconds=chance.choice([0, 0, 0.003, 0.01]))
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.run())
        for _ in range(12):
            for pair in chance.sample(pairs, 3):
                memory.cut(*pair)
            await asyncio.sleep(chance.uniform(0.02, 0.3))
            for pair in pairs:
                if chance.random() < 0.5:
                    _heal(memory, *pair, seconds=chance.choice([0, 0.003, 0.01]))
        for pair in pairs:
            memory.heal(*pair)
        served = [len(caller.sure) for caller in callers]
        await until(lambda: all(len(c.sure) > before + 3 for c, before in zip(callers, served, strict=True)))
        for caller in callers:
            caller.stopped = True
    for caller in callers:
        await caller.check()
    assert not any(caller.errors for caller in callers if caller.durable)
    failed = sum((caller.errors for caller in callers), Counter[str]())
    print(f"{sum(len(caller.sure) for caller in callers)} calls succeeded, {dict(failed)} failed")


def _heal(memory: MemoryCluster, a: Cluster, b: Cluster, *, seconds: float) -> None:
    memory.heal(a, b)
    memory.network.delay(memory.name_of(a), memory.name_of(b), seconds=seconds)
