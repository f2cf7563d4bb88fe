"""Runners that come, leave, die and lose each other while callers call."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from actorhub import ActorhubError, Cluster, Entity, Hub, RunnerUnavailable, current
from actorhub.cluster import part_of
from actorhub.core.config import Settings
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, soon


class Counter(Entity[int]):
    async def add(self, pause: float = 0.0) -> int:
        self.state += 1
        if pause:
            await asyncio.sleep(pause)
        return self.state

    async def value(self) -> int:
        return self.state

    async def where(self) -> str:
        return current().runner.address

    async def hold(self) -> int:
        self.state += 1
        await gates[current().entity_id].pass_through()
        return self.state

    async def far(self, other: str) -> int:
        return await current().client(Counter)(other).add()

    async def ticks(self) -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1


hub = Hub()
hub.register(Counter)


@pytest.fixture
async def pair(memory: MemoryCluster) -> tuple[Cluster, Cluster, Cluster]:
    """Two runners that share the shards, and a client that knows both."""
    one = await memory.start_runner()
    two = await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    return one, two, client


def _ids_on(runner: Cluster, count: int) -> list[str]:
    return [name for name in (f"e{n}" for n in range(400)) if runner.is_local(Counter, name)][:count]


class Load:
    """Callers that keep calling until they are stopped."""

    def __init__(self, callers: dict[str, Cluster]) -> None:
        self.sure = dict.fromkeys(callers, 0)
        self.unsure = dict.fromkeys(callers, 0)
        self.errors: list[Exception] = []
        self.stopped = False
        self._callers = callers

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for entity_id, cluster in self._callers.items():
                tasks.create_task(self._call(entity_id, cluster))

    async def _call(self, entity_id: str, cluster: Cluster) -> None:
        counter = cluster.client(Counter)(entity_id)
        while not self.stopped:
            try:
                await counter.add(0.001)
            except ActorhubError as error:
                self.errors.append(error)
                self.unsure[entity_id] += error.possibly_executed
            else:
                self.sure[entity_id] += 1

    async def check(self, cluster: Cluster) -> None:
        for entity_id, sure in self.sure.items():
            value = await cluster.client(Counter)(entity_id).value()
            assert sure <= value <= sure + self.unsure[entity_id], entity_id


async def test_calls_reach_the_owner_from_everywhere(pair: tuple[Cluster, Cluster, Cluster]) -> None:
    """From client and runners alike each id is served by the runner that owns its shard."""
    one, two, client = pair
    for owner in (one, two):
        assert owner.runner is not None
        for entity_id in _ids_on(owner, 5):
            for caller in pair:
                assert await caller.client(Counter)(entity_id).where() == owner.runner.address
    mine, theirs = _ids_on(one, 1)[0], _ids_on(two, 1)[0]
    assert await client.client(Counter)(mine).far(theirs) == 1


async def test_a_runner_that_leaves_disturbs_no_caller(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Graceful hand-over under load: no error anywhere, no call lost, none run twice."""
    one, two, client = pair
    load = Load(dict.fromkeys(_ids_on(one, 8) + _ids_on(two, 8), client))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await asyncio.sleep(0.1)
        await memory.stop(one)
        before = dict(load.sure)
        await until(lambda: all(load.sure[name] > before[name] + 3 for name in load.sure))
        load.stopped = True
    assert load.errors == []
    for name, count in load.sure.items():
        assert await client.client(Counter)(name).value() == count


async def test_a_runner_that_comes_disturbs_no_caller(memory: MemoryCluster) -> None:
    """Shards move to a new runner under load without an error for client or runner callers."""
    one = await memory.start_runner()
    client = await memory.client()
    names = [f"e{n}" for n in range(16)]
    load = Load({name: (client, one)[n % 2] for n, name in enumerate(names)})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await asyncio.sleep(0.1)
        await memory.start_runner()
        await memory.settled()
        before = dict(load.sure)
        await until(lambda: all(load.sure[name] > before[name] + 3 for name in names))
        load.stopped = True
    assert load.errors == []
    await load.check(client)
    assert len({await client.client(Counter)(name).where() for name in names}) == 2


async def test_a_killed_runner_fails_only_what_was_in_flight(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Calls that were sent fail as possibly executed; later ones are served by the other runner, state included."""
    one, two, client = pair
    lost, kept = _ids_on(two, 1)[0], _ids_on(one, 1)[0]
    await client.client(Counter)(lost).add()
    held = soon(failure(client.client(Counter)(lost).hold()))
    other = soon(client.client(Counter)(kept).hold())
    await gates[lost].came()
    await gates[kept].came()
    await memory.kill(two)
    error = await held
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed
    async with asyncio.timeout(10):
        assert await client.client(Counter)(lost).add() == 2
    gates[kept].open()
    assert await other == 1


async def test_a_kill_under_load_loses_nothing_that_was_acknowledged(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Every acknowledged call is counted; at most the unsure ones are counted besides."""
    one, two, client = pair
    load = Load(dict.fromkeys(_ids_on(one, 8) + _ids_on(two, 8), client))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await asyncio.sleep(0.1)
        await memory.kill(two)
        before = dict(load.sure)
        await until(lambda: all(load.sure[name] > before[name] + 3 for name in load.sure), deadline=20)
        load.stopped = True
    assert all(isinstance(error, RunnerUnavailable) for error in load.errors)
    await load.check(client)


async def test_a_cut_link_fails_what_was_on_it_and_comes_back(memory: MemoryCluster) -> None:
    """While client and only runner cannot reach each other calls wait; healed, they are served."""
    runner, client = await memory.start_runner(), await memory.client()
    held = soon(failure(client.client(Counter)("ada").hold()))
    await gates["ada"].came()
    memory.cut(client, runner)
    error = await held
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed
    await until(lambda: gates["ada"].left == ["cancelled"])
    waiting = soon(client.client(Counter)("ada").add())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    memory.heal(client, runner)
    async with asyncio.timeout(10):
        assert await waiting == 1


async def test_a_request_that_was_lost_on_the_way_is_not_sent_again(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Nobody can know whether it arrived, so the caller must decide; nothing runs twice."""
    _, two, client = pair
    name = _ids_on(two, 1)[0]
    await client.client(Counter)(name).add()
    memory.network.lose_next(memory.name_of(client), memory.name_of(two))
    error = await failure(client.client(Counter)(name).add())
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed
    async with asyncio.timeout(10):
        assert await client.client(Counter)(name).value() == 1


async def test_replies_of_a_former_owner_are_refused(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """A runner that lost its lock session cancels its handlers, and a newer owner serves the next calls."""
    one, two, client = pair
    name = _ids_on(two, 1)[0]
    held = soon(failure(client.client(Counter)(name).hold()))
    await gates[name].came()
    memory.store.terminate_sessions(part_of(two).node.incarnation)
    error = await held
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed
    async with asyncio.timeout(15):
        assert await client.client(Counter)(name).add() == 1
    del one


async def test_a_slow_handler_is_waited_for_and_then_cut_off(memory: MemoryCluster) -> None:
    """A runner that leaves gives its handlers the grace time; what does not end is cancelled and reported."""
    memory.settings = Settings(shards_per_group=16, grace=timedelta(seconds=1))
    one = await memory.start_runner()
    client = await memory.client()
    quick = soon(client.client(Counter)("quick").add(0.15))
    slow = soon(failure(client.client(Counter)("slow").hold()))
    await gates["slow"].came()
    begin = asyncio.get_running_loop().time()
    await memory.stop(one)
    assert asyncio.get_running_loop().time() - begin < 3
    assert await quick == 1
    error = await slow
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed
    assert gates["slow"].left == ["cancelled"]


async def test_what_waited_in_a_mailbox_moves_with_the_shard(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Messages that had not started when their runner left run on the next owner, asks in their order, each once."""
    _, two, client = pair
    name = _ids_on(two, 1)[0]
    held = soon(client.client(Counter)(name).hold())
    await gates[name].came()
    waiting = [soon(client.client(Counter)(name).add()) for _ in range(5)]
    told = [await client.tell(client.client(Counter)(name).add()) for _ in range(3)]
    leaving = soon(memory.stop(two))
    await asyncio.sleep(0.05)
    gates[name].open()
    await leaving
    assert await held == 1
    async with asyncio.timeout(10):
        replies = [await task for task in waiting]
        assert replies == sorted(set(replies))
        assert set(replies) <= set(range(2, 10))
        while await client.client(Counter)(name).value() != 9:
            await asyncio.sleep(0.005)
    assert len(told) == 3


async def test_a_call_withdrawn_while_its_shard_moves_never_runs(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """A caller that was told that nothing ran, or that went away, is not served by the next owner nevertheless."""
    _, two, client = pair
    name = _ids_on(two, 1)[0]
    held = soon(client.client(Counter)(name).hold())
    await gates[name].came()
    leaving = soon(memory.stop(two))
    await asyncio.sleep(0.05)
    counter = client.client(Counter).options(timeout=timedelta(milliseconds=80))
    error = await failure(counter(name).add())
    assert isinstance(error, ActorhubError)
    assert not error.possibly_executed
    cancelled = soon(client.client(Counter)(name).add())
    await asyncio.sleep(0.02)
    cancelled.cancel()
    await asyncio.sleep(0.02)
    gates[name].open()
    await leaving
    assert await held == 1
    assert await client.client(Counter)(name).value() == 1


async def test_only_one_of_two_instances_can_be_alive_after_a_partition(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Runners that cannot see each other keep their shards, because locks decide, and both go on serving."""
    one, two, client = pair
    memory.cut(one, two)
    await asyncio.sleep(0.3)
    owners = memory.owners()
    assert all(len(holders) == 1 for holders in owners.values())
    for owner in (one, two):
        assert await client.client(Counter)(_ids_on(owner, 1)[0]).add() == 1
    memory.heal(one, two)
    await memory.settled()


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1])
async def test_no_call_fails_that_is_on_its_way_to_a_runner_that_leaves(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster], seconds: float
) -> None:
    """The runner ends no link before it has sent back what was sent to it by a caller who did not know yet."""
    leaving, _, client = pair
    for source, target in ((client, leaving), (leaving, client)):
        memory.network.delay(memory.name_of(source), memory.name_of(target), seconds=seconds)
    names = _ids_on(leaving, 8)
    is_over = False

    async def call(name: str) -> int:
        count = 0
        while not is_over:
            for each in [soon(client.client(Counter)(name).add()) for _ in range(3)]:
                await each
                count += 1
            await asyncio.sleep(0)
        return count

    async def broadcast() -> None:
        while not is_over:
            await client.tell(client.client(Counter).active().value())
            await asyncio.sleep(0)

    calls, broadcasts = [soon(call(name)) for name in names], soon(broadcast())
    await memory.stop(leaving)
    is_over = True
    await broadcasts
    for name, count in zip(names, await asyncio.gather(*calls), strict=True):
        assert await client.client(Counter)(name).value() == count
