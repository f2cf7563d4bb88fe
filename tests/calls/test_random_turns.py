"""Turns under random loads: the rules hold whoever calls, cancels and fails when."""

import asyncio
import random
from datetime import timedelta

import pytest

from actorhub import ActorhubError, Cluster, Entity, HandlerFailed, Hub, current, handler
from actorhub.cluster import part_of
from actorhub.core.clock import SystemClock
from actorhub.engine.runner import Runner
from actorhub.engine.supervision import Supervisor
from actorhub.testing import MemoryCluster, until

writers: dict[str, int] = {}
readers: dict[str, int] = {}
wrong: list[str] = []


def _check(entity_id: str) -> None:
    if writers.get(entity_id, 0) > 1 or (writers.get(entity_id, 0) and readers.get(entity_id, 0)):
        wrong.append(f"{entity_id}: {writers[entity_id]} writers beside {readers.get(entity_id, 0)} readers")


async def _pause(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


class Ruled(Entity[int], mailbox_capacity=50):
    async def write(self, steps: int, fails: bool) -> int:
        name = current().entity_id
        writers[name] = writers.get(name, 0) + 1
        _check(name)
        try:
            self.state += 1
            await _pause(steps)
            if fails:
                raise ValueError("on purpose")
            return self.state
        finally:
            writers[name] -= 1

    @handler(readonly=True)
    async def read(self, steps: int, fails: bool) -> int:
        name = current().entity_id
        readers[name] = readers.get(name, 0) + 1
        _check(name)
        try:
            await _pause(steps)
            if fails:
                raise ValueError("on purpose")
            return self.state
        finally:
            readers[name] -= 1

    @handler(reentrant=True)
    async def nested(self, steps: int, fails: bool) -> int:
        await _pause(steps)
        if fails:
            raise ValueError("on purpose")
        return self.state

    @handler(timeout=timedelta(milliseconds=5))
    async def limited(self, steps: int, fails: bool) -> int:
        return await self.write(steps, fails)

    async def count(self) -> int:
        return self.state


hub = Hub()
hub.register(Ruled)


class Callers:
    """Call at random, and count what is sure and what is not."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._supervisor = Supervisor(SystemClock())
        self.sure = {f"e{n}": 0 for n in range(4)}
        self.unsure = dict.fromkeys(self.sure, 0)

    async def run(self) -> None:
        for _ in range(40):
            task = self._supervisor.spawn(self._call(), "call")
            if self._chance.random() < 0.2:
                for _ in range(self._chance.randrange(8)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _call(self) -> None:
        chance = self._chance
        entity_id = chance.choice(list(self.sure))
        timeout = timedelta(seconds=chance.choice([0.05, 5, 5]))
        ruled = self._cluster.client(Ruled).options(timeout=timeout)(entity_id)
        kind = chance.choice(["write", "write", "read", "nested", "limited"])
        changes = kind in {"write", "limited"}
        try:
            await getattr(ruled, kind)(chance.choice([0, 0, 1, 5]), chance.random() < 0.2)
        except HandlerFailed:
            raise
        except (ActorhubError, asyncio.CancelledError):
            # Of a cancelled or late call nobody knows whether it was committed.
            self.unsure[entity_id] += changes
            raise
        self.sure[entity_id] += changes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("side", ["here", "there"])
async def test_no_order_of_events_breaks_the_rules_of_turns(seed: int, side: str) -> None:
    """Random handlers, pauses, failures, timeouts and cancellations: rules held, nothing stuck, no change lost."""
    for counts in (writers, readers):
        counts.clear()
    wrong.clear()
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        cluster = runner if side == "here" else await memory.client()
        callers = Callers(cluster, seed)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(callers.run())
        assert wrong == []
        for entity_id, sure in callers.sure.items():
            async with asyncio.timeout(3):
                value = await cluster.client(Ruled)(entity_id).count()
            assert sure <= value <= sure + callers.unsure[entity_id]
        part = part_of(runner)
        assert isinstance(part, Runner)
        await until(lambda: all(cell.is_idle for cell in part.host.cells()), "an idle host", deadline=3)
        assert part_of(cluster).node.deadlines.size == 0
