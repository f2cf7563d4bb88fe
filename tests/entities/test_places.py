"""`on_full="wait"` while all places for entities in memory are taken: calls wait for one, first come first served."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta

import pytest

from actorhub import CallTimeout, Cluster, Entity, Hub, MailboxFull, current, handler
from actorhub.core.config import Settings
from actorhub.engine.runs import newcomers
from actorhub.testing import MemoryCluster, until
from tests.support.gates import closed_gates, failure, gates, outcomes, soon
from tests.support.parts import host_of

__all__ = ["closed_gates"]

SETTINGS = Settings(shards_per_group=16, max_resident=4, grace=timedelta(seconds=0.5))
log: list[str] = []


class Guest(Entity, max_idle=timedelta(minutes=1)):
    async def stay(self) -> str:
        log.append(current().entity_id)
        await gates[current().entity_id].pass_through()
        return current().entity_id

    async def visit(self, text: str = "") -> str:
        log.append(f"{current().entity_id}{text}")
        return current().runner.address

    async def visit_for(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def counts(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    @handler(durable=True)
    async def is_noted(self) -> None:
        log.append(f"{current().entity_id} noted")


class Lingering(Entity, max_idle=timedelta(minutes=1)):
    async def visit(self) -> str:
        return current().entity_id

    async def on_deactivate(self) -> None:
        await gates["leaving"].pass_through()


hub = Hub()
hub.register(Guest)
hub.register(Lingering)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    """Forget the runs of the test before."""
    log.clear()


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    """A cluster whose runners have four places for entities each."""
    async with MemoryCluster(hub, settings=SETTINGS) as made:
        yield made


@pytest.fixture
async def runner(memory: MemoryCluster) -> Cluster:
    """Its first runner."""
    return await memory.start_runner()


@pytest.fixture(params=["here", "there"])
async def cluster(request: pytest.FixtureRequest, memory: MemoryCluster, runner: Cluster) -> Cluster:
    """The caller's side."""
    return runner if request.param == "here" else await memory.client()


def waiting(runner: Cluster) -> int:
    return host_of(runner).newcomers.count


async def _full(cluster: Cluster) -> "list[asyncio.Task[str]]":
    """Take all four places until the gates `0` to `3` open."""
    guests = [soon(cluster.client(Guest)(str(n)).stay()) for n in range(4)]
    for n in range(4):
        await gates[str(n)].came()
    return guests


async def _wait_for_a_place(runner: Cluster, *calls: Awaitable[object]) -> "list[asyncio.Task[object]]":
    """Start the calls in their order, and return once all of them wait for places."""
    tasks: list[asyncio.Task[object]] = []
    before = waiting(runner)
    for call in calls:
        tasks.append(soon(call))
        await until(lambda: waiting(runner) == before + len(tasks), deadline=5)
    return tasks


async def test_any_number_of_ids_is_served_in_few_places(runner: Cluster, cluster: Cluster) -> None:
    """Two hundred busy entities at once share four places, and no call fails."""
    guest = cluster.client(Guest).options(on_full="wait")
    found = await outcomes(*(guest(str(n)).visit_for(0.001) for n in range(200)))
    assert found == [None] * 200
    assert host_of(runner).residents.count <= 4
    assert waiting(runner) == 0


async def test_who_comes_first_is_served_first(runner: Cluster, cluster: Cluster) -> None:
    """Places go to the calls in the order in which they came, each as soon as an entity is idle."""
    held = await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait")
    late = await _wait_for_a_place(runner, *(guest(name).stay() for name in "abcdef"))
    for n in range(4):
        gates[str(n)].open()
        await gates["abcdef"[n]].came()
    assert log == ["0", "1", "2", "3", "a", "b", "c", "d"]
    for name in "abcdef":
        gates[name].open()
    async with asyncio.timeout(5):
        assert [await task for task in late] == list("abcdef")
        assert [await task for task in held] == list("0123")
    assert log[-2:] == ["e", "f"]


async def test_who_does_not_wait_is_refused_and_overtakes_nobody(runner: Cluster, cluster: Cluster) -> None:
    """Without `on_full="wait"` a call fails at once as before, also while a place that is free is somebody else's."""
    await _full(runner)
    error = await failure(cluster.client(Guest)("a").visit())
    assert isinstance(error, MailboxFull)
    assert not error.possibly_executed
    guest = cluster.client(Guest).options(on_full="wait")
    (late,) = await _wait_for_a_place(runner, guest("b").visit())
    assert isinstance(await failure(cluster.client(Guest)("b").visit(" rudely")), MailboxFull)
    gates["0"].open()
    async with asyncio.timeout(5):
        await late
    assert log[4:] == ["b"]


async def test_the_deadline_ends_the_wait(runner: Cluster, cluster: Cluster) -> None:
    """A call that got no place fails with CallTimeout, and nothing ran."""
    await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait", timeout=timedelta(seconds=0.2))
    error = await failure(guest("a").visit())
    assert isinstance(error, CallTimeout)
    assert not error.possibly_executed
    assert "place in memory" in str(error) or cluster is not runner
    await until(lambda: waiting(runner) == 0, deadline=5)
    gates["0"].open()
    assert await cluster.client(Guest).options(on_full="wait")("b").visit()
    assert log[4:] == ["b"]


async def test_a_cancelled_caller_gives_up_its_wait(runner: Cluster, cluster: Cluster) -> None:
    """Those behind it move up, and it never runs."""
    await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait")
    first, second = await _wait_for_a_place(runner, guest("a").visit(), guest("b").visit())
    first.cancel()
    await until(lambda: waiting(runner) == 1, deadline=5)
    gates["0"].open()
    async with asyncio.timeout(5):
        await second
    assert log[4:] == ["b"]


async def test_the_wait_is_bounded(runner: Cluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a call that would wait fails at once, and nothing ran."""
    monkeypatch.setattr(newcomers, "MOST_NEWCOMERS", 3)
    await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait")
    await _wait_for_a_place(runner, *(guest(name).visit() for name in "abc"))
    error = await failure(guest("d").visit())
    assert isinstance(error, MailboxFull)
    assert not error.possibly_executed
    assert "3 calls" in str(error)
    assert host_of(runner).statistics().queued == 3


async def test_waiting_costs_no_time(runner: Cluster) -> None:
    """While nothing changes, nobody looks for a place in a loop."""
    await _full(runner)
    guest = runner.client(Guest).options(on_full="wait")
    await _wait_for_a_place(runner, *(guest(str(n)).visit() for n in range(4, 300)))
    began = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - began < 0.3


async def test_calls_of_one_sender_keep_their_order(runner: Cluster, cluster: Cluster) -> None:
    """All calls of one entity get its place together, also if a durable message makes it resident meanwhile."""
    await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait")
    late = await _wait_for_a_place(runner, *(guest("a").visit(f" {n}") for n in range(3)), guest("b").visit())
    noted = soon(cluster.client(Guest)("a").is_noted())
    gates["0"].open()
    async with asyncio.timeout(10):
        await noted
        await guest("a").visit(" 3")
        for task in late:
            await task
    order = [entry for entry in log if entry.startswith("a ") and entry != "a noted"]
    assert order == ["a 0", "a 1", "a 2", "a 3"]
    assert "b" in log


async def test_a_tell_is_accepted_once_it_has_a_place(runner: Cluster, cluster: Cluster) -> None:
    """So a sender of tells is slowed down; one that is told is not lost."""
    await _full(runner)
    (told,) = await _wait_for_a_place(runner, cluster.tell(cluster.client(Guest).options(on_full="wait")("a").visit()))
    assert not told.done()
    gates["0"].open()
    async with asyncio.timeout(5):
        await told
    await until(lambda: log[4:] == ["a"], deadline=5)


async def test_a_stream_waits_as_well_and_leaves_its_place(runner: Cluster, cluster: Cluster) -> None:
    """A consumer gets its items once there is a place, and whoever waits behind it gets the place when it is over."""
    await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait")

    async def items(name: str) -> list[int]:
        return [item async for item in guest(name).counts(3)]

    streams = await _wait_for_a_place(runner, items("a"), items("b"))
    gates["0"].open()
    async with asyncio.timeout(5):
        assert [await task for task in streams] == [[0, 1, 2], [0, 1, 2]]


async def test_calls_that_wait_move_with_their_shards(memory: MemoryCluster, runner: Cluster, cluster: Cluster) -> None:
    """A second runner that joins takes its share of them along; nothing waits for the first one's places."""
    await _full(runner)
    guest = cluster.client(Guest).options(on_full="wait")
    late = await _wait_for_a_place(runner, *(guest(f"late {n}").visit() for n in range(20)))
    other = await memory.start_runner()
    assert other.runner is not None
    await until(lambda: any(entry.startswith("late") for entry in log), deadline=10)
    first = next(entry for entry in log if entry.startswith("late"))
    assert other.is_local(Guest, first)
    for n in range(4):
        gates[str(n)].open()
    async with asyncio.timeout(10):
        for task in late:
            await task
    assert sorted(log[4:]) == sorted(f"late {n}" for n in range(20))


async def test_a_runner_that_leaves_hands_on_the_calls_that_wait(memory: MemoryCluster, runner: Cluster) -> None:
    """They run at the next owner."""
    client = await memory.client()
    held = await _full(client)
    guest = client.client(Guest).options(on_full="wait")
    late = await _wait_for_a_place(runner, *(guest(name).visit() for name in "abcdefgh"))
    other = await memory.start_runner()
    assert other.runner is not None
    leaving = soon(memory.stop(runner))
    await until(lambda: waiting(runner) == 0, deadline=10)
    for n in range(4):
        gates[str(n)].open()
    async with asyncio.timeout(10):
        await leaving
        assert {await task for task in late} == {other.runner.address}
        assert sorted([await task for task in held]) == list("0123")


async def test_what_a_leaving_entity_has_in_its_mailbox_keeps_its_place(runner: Cluster, cluster: Cluster) -> None:
    """A call that was queued while its entity left runs in the next activation, however full the memory is."""
    await cluster.client(Lingering)("x").visit()
    for n in range(4):  # the fourth one makes `x` leave
        _ = soon(cluster.client(Guest)(str(n)).stay())
        await gates[str(n)].came()
    await gates["leaving"].came()
    queued = soon(cluster.client(Lingering)("x").visit())
    await until(lambda: host_of(runner).statistics().queued == 1, deadline=5)
    gates["leaving"].open()
    async with asyncio.timeout(5):
        assert await queued == "x"
