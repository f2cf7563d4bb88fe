"""Readonly handlers run while a run of their entity waits, and see what is committed."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import Cluster, Entity, HandlerFailed, Hub, RunnerUnavailable, current, handler
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of


class Trip(Entity[list[str]], max_idle=timedelta(milliseconds=30)):
    """Waits with a state that is half done."""

    def __init__(self) -> None:
        self._reads = 0

    @handler(durable=True)
    async def book(self) -> list[str]:
        self.state.append("half done")
        value = current().deferred("value", str)
        gates["book"].left.append(value.token)
        self.state.append(await value.wait())
        return self.state

    @handler(durable=True)
    async def save_and_wait(self) -> None:
        await self.save(["saved"])
        self.state.append("half done")
        await current().sleep(timedelta(days=1))

    @handler(durable=True)
    async def change_beside(self) -> None:
        value = current().deferred("value", str)
        gates["book"].left.append(value.token)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._change())
            await value.wait()

    async def _change(self) -> None:
        await gates["change"].pass_through()
        self.state.append("changed beside")
        gates["changed"].enter()

    async def add(self, text: str) -> list[str]:
        self.state.append(text)
        return self.state

    @handler(durable=True)
    async def add_durably(self, text: str) -> list[str]:
        self.state.append(text)
        return self.state

    @handler(readonly=True)
    async def read(self) -> list[str]:
        return self.state

    @handler(readonly=True)
    async def read_slowly(self) -> list[str]:
        await gates["slow"].pass_through()
        return self.state

    @handler(readonly=True)
    async def spoil(self) -> None:
        self.state.append("by a reader")


hub = Hub()
hub.register(Trip)


async def waiting(cluster: Cluster, handler: str = "book") -> int:
    """Tell a trip that had one commit to wait; return the message once it does."""
    trip = cluster.client(Trip)("t")
    await trip.add("committed")
    told = await cluster.tell(getattr(trip, handler)())
    async with asyncio.timeout(5):
        while True:
            try:
                async with asyncio.timeout(0.1):
                    await trip.read()
                    return told
            except TimeoutError:
                continue  # the run does not wait yet, so that reads wait for it


async def test_reads_go_on_during_a_durable_wait(anywhere: Cluster) -> None:
    """They see what is committed, and the run that waits finds its half-done state as it left it."""
    trip = anywhere.client(Trip)("t")
    await trip.add("committed")
    told = await anywhere.tell(trip.book())
    await until(lambda: bool(gates["book"].left))
    async with asyncio.timeout(5):
        assert await outcomes(*(trip.read() for _ in range(10))) == [["committed"]] * 10
        assert await anywhere.complete(gates["book"].left[0], "paid")
        assert await anywhere.reply(told) == ["committed", "half done", "paid"]
    assert await trip.read() == ["committed", "half done", "paid"]


async def test_reads_that_came_before_the_wait_run_when_it_begins(cluster: Cluster) -> None:
    """They wait while the run does something, and no longer."""
    trip = cluster.client(Trip)("t")
    booking = soon(trip.book())
    reads = soon(outcomes(*(trip.read() for _ in range(5))))
    async with asyncio.timeout(5):
        assert await reads == [[]] * 5
    await until(lambda: bool(gates["book"].left))
    assert await cluster.complete(gates["book"].left[0], "paid")
    assert await booking == ["half done", "paid"]


async def test_a_wait_ends_although_somebody_reads(cluster: Cluster) -> None:
    """The reader goes on with what it saw, and the entity leaves memory only after it."""
    trip = cluster.client(Trip)("t")
    told = await cluster.tell(trip.book())
    await until(lambda: bool(gates["book"].left))
    slow = soon(trip.read_slowly())
    await gates["slow"].came()
    assert await cluster.complete(gates["book"].left[0], "paid")
    async with asyncio.timeout(5):
        assert await cluster.reply(told) == ["half done", "paid"]
        assert await trip.add("more") == ["half done", "paid", "more"]
    await asyncio.sleep(0.1)
    assert not slow.done()
    gates["slow"].open()
    assert await slow == []


async def test_what_a_run_saves_before_its_wait_is_read(cluster: Cluster) -> None:
    """And what it changes afterwards is not."""
    told = await waiting(cluster, "save_and_wait")
    assert await cluster.client(Trip)("t").read() == ["saved"]
    assert await cluster.cancel(told)
    assert await cluster.client(Trip)("t").read() == ["saved"]


async def test_a_task_that_changes_the_state_during_the_wait_is_not_seen(cluster: Cluster) -> None:
    """Neither by those who read before nor by those who do so after; and it is committed with its run."""
    told = await waiting(cluster, "change_beside")
    trip = cluster.client(Trip)("t")
    slow = soon(trip.read_slowly())
    await gates["slow"].came()
    gates["change"].open()
    await gates["changed"].came()
    gates["slow"].open()
    assert await slow == ["committed"]
    assert await trip.read() == ["committed"]
    assert await cluster.complete(gates["book"].left[0], "paid")
    await cluster.reply(told)
    assert await trip.read() == ["committed", "changed beside"]


async def test_a_reader_that_changes_the_state_fails_alone(cluster: Cluster) -> None:
    """As always; neither the run that waits nor other readers see the change."""
    told = await waiting(cluster)
    trip = cluster.client(Trip)("t")
    slow = soon(trip.read_slowly())
    await gates["slow"].came()
    assert isinstance(await failure(trip.spoil()), HandlerFailed)
    assert await trip.read() == ["committed"]
    gates["slow"].open()
    assert await slow == ["committed"]
    assert await cluster.complete(gates["book"].left[0], "paid")
    assert await cluster.reply(told) == ["committed", "half done", "paid"]


async def test_a_read_does_not_overtake_what_its_sender_called_before(runner: Cluster) -> None:
    """It waits behind a volatile call of the same sender; durable ones it overtakes, as those that the store has."""
    told = await waiting(runner)
    trip = runner.client(Trip)("t")
    await runner.tell(trip.add_durably("later"))
    assert await trip.read() == ["committed"]
    adding, reading = soon(trip.add("mine")), soon(trip.read())
    await asyncio.sleep(0.05)
    assert not reading.done()
    assert await runner.complete(gates["book"].left[0], "paid")
    assert await runner.reply(told) == ["committed", "half done", "paid"]
    assert "mine" in await adding
    assert "mine" in await reading


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_reader_ends_with_its_runner(memory: MemoryCluster, end: str) -> None:
    """It is waited for by a hand-over, or lost with its runner; the wait goes on elsewhere, and is read there."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    told = await waiting(client)
    trip = client.client(Trip)("t")
    slow = soon(outcomes(trip.read_slowly()))
    await gates["slow"].came()
    found = memory.owner_of(client.shard_of(Trip, "t"))
    assert found is not None
    host = host_of(found)
    ending = soon(getattr(memory, end)(found))
    await asyncio.sleep(0.05)
    gates["slow"].open()
    await ending
    (seen,) = await slow
    assert seen == ["committed"] if end == "stop" else isinstance(seen, RunnerUnavailable)
    assert not host.scheduler.reading._entities
    async with asyncio.timeout(10):
        assert await trip.read() == ["committed"]
        assert await client.complete(gates["book"].left[0], "paid")
        assert await client.reply(told) == ["committed", "half done", "paid"]
