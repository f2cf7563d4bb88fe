"""Which entities stay in memory."""

import asyncio
from datetime import timedelta

from actorhub import Entity, Hub, MailboxFull
from actorhub.cluster import part_of
from actorhub.core.config import Settings
from actorhub.engine.runner import Runner
from actorhub.testing import MemoryCluster, until

born: dict[str, float] = {}
gone: dict[str, float] = {}


class Brief(Entity, max_idle=timedelta(milliseconds=200)):
    def __init__(self) -> None:
        self._name = ""

    async def touch(self, name: str) -> None:
        self._name = name
        born[name] = asyncio.get_running_loop().time()

    async def on_deactivate(self) -> None:
        gone[self._name] = asyncio.get_running_loop().time()


class Slow(Entity, max_idle=timedelta(minutes=1)):
    async def touch(self) -> None:
        pass

    async def on_deactivate(self) -> None:
        await asyncio.sleep(0.05)


class Lasting(Entity, max_idle=timedelta(minutes=1)):
    async def touch(self) -> None:
        pass


hub = Hub()
for entity in (Brief, Slow, Lasting):
    hub.register(entity)


async def test_an_entity_leaves_after_one_to_one_and_a_half_times_its_idle_time() -> None:
    """None of fifty leaves early, and all are gone in time but for what a busy machine adds."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        born.clear()
        gone.clear()
        for n in range(50):
            await runner.client(Brief)(str(n)).touch(str(n))
        await until(lambda: len(gone) == 50, deadline=5)
        idle = [gone[name] - born[name] for name in born]
        assert min(idle) >= 0.199
        assert max(idle) < 0.2 * 1.5 + 0.5


async def test_other_types_are_not_touched_by_a_short_idle_time() -> None:
    """Each type has its own idle time."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        part = part_of(runner)
        assert isinstance(part, Runner)
        await runner.client(Lasting)("a").touch()
        await runner.client(Brief)("b").touch("b")
        await until(lambda: part.host.residents.count == 1, deadline=5)
        assert [cell.address for cell in part.host.cells()] == ["lasting/a"]


async def test_slow_goodbyes_do_not_let_the_cap_grow_without_bound() -> None:
    """While hooks of leaving entities run, newcomers beyond the cap are bounded."""
    async with MemoryCluster(hub, settings=Settings(shards_per_group=16, max_resident=20)) as memory:
        runner = await memory.start_runner()
        part = part_of(runner)
        assert isinstance(part, Runner)
        most = 0
        refused = 0
        for n in range(200):
            try:
                await runner.client(Slow)(str(n)).touch()
            except MailboxFull:
                refused += 1
            most = max(most, part.host.residents.count)
        assert most <= 40
        assert refused < 200
