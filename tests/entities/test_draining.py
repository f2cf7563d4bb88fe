"""Calls between entities while a shard moves: what a running handler waits for is served where it runs."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from actorhub import Cluster
from actorhub.core.config import Settings
from actorhub.core.errors import NotConnected, RunnerUnavailable, ShuttingDown
from actorhub.engine.model.records import HostedShard
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.entities.siblings import Broker, Chief, Order, Stock, hub, notes
from tests.support.gates import Gate, gates, outcomes, soon
from tests.support.parts import host_of, runner_of

SOON = 3.0
"""Seconds in which a hand-over, and what it holds up, are to be over."""
SETTINGS = Settings(shards_per_group=16, grace=timedelta(seconds=10))


@pytest.fixture(autouse=True)
def no_notes() -> None:
    """Begin without notes."""
    notes.clear()


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    """A cluster with so much grace that nobody mistakes its end for a quick hand-over."""
    async with MemoryCluster(hub, settings=SETTINGS) as made:
        yield made


@pytest.fixture
async def pair(memory: MemoryCluster) -> tuple[Cluster, Cluster, Cluster]:
    """Two runners that share the shards, and a client that knows both."""
    one = await memory.start_runner()
    two = await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    return one, two, client


def ids_on(runner: Cluster, count: int = 1) -> list[str]:
    """Return ids of which the runner owns the shard."""
    return [name for name in (f"e{n}" for n in range(400)) if runner.is_local(Order, name)][:count]


async def drains(runner: Cluster, entity_id: str) -> None:
    """Wait until the shard of an entity drains."""
    await until(lambda: _shard(runner, entity_id).draining, "a drain")


def _shard(runner: Cluster, entity_id: str) -> HostedShard:
    part = runner_of(runner)
    return part.host.shards[part.node.router.sharding.shard_of(hub.specs["order"], entity_id)]


async def _prepare_sibling(client: Cluster, entity_id: str, sibling: str) -> None:
    stock = client.client(Stock)(entity_id)
    if sibling != "absent":
        await stock.take()
    if sibling == "busy":
        _ = soon(stock.hold())
        await gates[f"stock {entity_id}"].came()
    if sibling == "leaving":
        gates[f"leaving {entity_id}"] = Gate()


@pytest.mark.parametrize("how", ["take", "look", "store", "items"])
@pytest.mark.parametrize("sibling", ["absent", "idle", "busy", "leaving"])
async def test_a_sibling_of_what_runs_is_served_while_its_runner_leaves(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster], sibling: str, how: str
) -> None:
    """Whether it is resident, busy, just leaving memory or not there: the call and the hand-over are soon over."""
    one, two, client = pair
    (name,) = ids_on(one)
    order = client.client(Order)(name)
    placed = soon(order.place(how))
    await gates[name].came()
    await _prepare_sibling(client, name, sibling)
    leaving = soon(memory.stop(one))
    await drains(one, name)
    gates[name].open()
    await asyncio.sleep(0.02)
    for gate in (f"stock {name}", f"leaving {name}"):
        gates[gate].open()
    async with asyncio.timeout(SOON):
        assert await placed
        await leaving
    assert await client.client(Stock)(name).take() == two.runner.address  # type: ignore[union-attr]


async def test_a_runner_that_comes_holds_up_no_call_between_siblings(memory: MemoryCluster) -> None:
    """The shards that it gets drain while their entities ask each other: no error, and nobody waits for the grace."""
    one = await memory.start_runner()
    client = await memory.client()
    names = [f"e{n}" for n in range(24)]
    orders = [client.client(Order)(name) for name in names]
    placed = [soon(order.place("store" if number % 2 else "take")) for number, order in enumerate(orders)]
    for name in names:
        await gates[name].came()
    coming = soon(memory.start_runner())
    await until(lambda: any(shard.draining for shard in host_of(one).shards.values()), "a drain")
    for name in names:
        gates[name].open()
    async with asyncio.timeout(SOON):
        assert await outcomes(*placed) == [str(one.runner and one.runner.address)] * 24
        await coming
        await memory.settled()
    served = {await client.client(Stock)(name).take() for name in names}
    assert len(served) == 2


async def test_a_chain_over_two_runners_comes_back_into_a_shard_that_drains(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """A asks B on the other runner, which asks A's sibling: the call arrives over a link and is served."""
    one, two, client = pair
    (name,), (middle,) = ids_on(one), ids_on(two)
    asked = soon(client.client(Order)(name).through(middle))
    await gates[name].came()
    leaving = soon(memory.stop(one))
    await drains(one, name)
    gates[name].open()
    async with asyncio.timeout(SOON):
        assert await asked == one.runner.address  # type: ignore[union-attr]
        await leaving


async def test_a_call_that_is_waited_for_by_way_of_a_mailbox_is_served(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """A waits in the mailbox of an entity elsewhere, whose present run asks A's sibling: no chain tells, time does."""
    one, two, client = pair
    (name,), (middle,) = ids_on(one), ids_on(two)
    before = soon(client.client(Broker)(middle).hold_then_fetch(name))
    await gates[f"broker {middle}"].came()
    asked = soon(client.client(Order)(name).through(middle))
    await gates[name].came()
    leaving = soon(memory.stop(one))
    await drains(one, name)
    gates[name].open()
    await asyncio.sleep(0.02)
    gates[f"broker {middle}"].open()
    async with asyncio.timeout(SOON):
        assert await before
        assert await asked
        await leaving


async def test_a_durable_run_asks_its_sibling_durably(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Both are stored, counted and committed by the runner that leaves."""
    one, _, client = pair
    names = ids_on(one, 4)
    booked = [soon(client.client(Order)(name).book()) for name in names]
    for name in names:
        await gates[name].came()
    leaving = soon(memory.stop(one))
    await drains(one, names[0])
    for name in names:
        gates[name].open()
    async with asyncio.timeout(SOON):
        assert await outcomes(*booked) == [str(one.runner and one.runner.address)] * 4
        await leaving


async def test_a_durable_ask_behind_others_keeps_its_place(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """What was told the sibling before runs before it, though it is not waited for."""
    one, _, client = pair
    (name,) = ids_on(one)
    booked = soon(client.client(Order)(name).book())
    await gates[name].came()
    _ = soon(client.client(Stock)(name).hold())
    await gates[f"stock {name}"].came()
    stored = [soon(client.client(Stock)(name).store()) for _ in range(3)]
    await until(lambda: _shard(one, name).queued == 3, "a queue")
    leaving = soon(memory.stop(one))
    await drains(one, name)
    gates[name].open()
    await asyncio.sleep(0.02)
    gates[f"stock {name}"].open()
    async with asyncio.timeout(SOON):
        assert await booked
        assert len({*await outcomes(*stored)}) == 1
        await leaving
    assert memory.stored("stock", name).version >= 4  # type: ignore[union-attr]


async def test_new_calls_are_held_for_the_next_owner(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Whoever is not waited for by a running handler runs at the next owner, and only there."""
    one, two, client = pair
    name, other = ids_on(one, 2)
    placed = soon(client.client(Order)(name).place())
    await gates[name].came()
    leaving = soon(memory.stop(one))
    await drains(one, name)
    roots = [soon(client.client(Broker)(name).where()), soon(client.client(Order)(name).where())]
    await until(lambda: _shard(one, name).queued == 2, "two calls that are held")
    moved = soon(client.client(Stock)(other).take())
    gates[name].open()
    async with asyncio.timeout(SOON):
        await placed
        await leaving
        assert await outcomes(*roots, moved) == [two.runner.address] * 3  # type: ignore[union-attr]


async def test_what_an_entity_told_is_not_overtaken_by_what_it_asks(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """A told B something, which is held; what A asks B in its next run comes after that (sender order)."""
    one, _, client = pair
    name, other = ids_on(one, 2)
    asked = soon(client.client(Order)(name).note_and_ask(other))
    await gates[name].came()
    leaving = soon(memory.stop(one))
    await drains(one, name)
    await drains(one, other)
    gates[name].open()
    async with asyncio.timeout(SOON):
        await asked
        await leaving
    assert notes[other] == ["told", "asked"]


async def test_a_sole_runner_lets_its_handlers_finish_what_they_ask(memory: MemoryCluster) -> None:
    """Nobody takes its shards over, so all of them are served, singletons included, until nothing runs."""
    one = await memory.start_runner()
    client = await memory.client()
    await until(lambda: any(cell.is_singleton for cell in host_of(one).cells()), "a leader")
    names = [f"e{n}" for n in range(12)]
    orders = [client.client(Order)(name) for name in names]
    calls = [soon(order.through(f"x{number}")) for number, order in enumerate(orders[:6])]
    calls += [soon(order.lead()) for order in orders[6:]]
    for name in names:
        await gates[name].came()
    leaving = soon(memory.stop(one))
    await drains(one, "e0")
    await asyncio.sleep(0.05)
    for name in names:
        gates[name].open()
    async with asyncio.timeout(SOON):
        assert await outcomes(*calls) == [str(one.runner and one.runner.address)] * 6 + ["decided"] * 6
        await leaving


async def test_a_cluster_whose_runners_all_leave_keeps_none_of_them(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """What a running handler asks a shard that nobody owns any longer fails at once: it was not executed."""
    one, two, client = pair
    (name,), (middle,) = ids_on(one), ids_on(two)
    asked = soon(client.client(Order)(name).through(middle))
    await gates[name].came()
    leaving = [soon(memory.stop(two)), soon(memory.stop(one))]
    await leaving[0]
    gates[name].open()
    async with asyncio.timeout(SOON):
        (error,) = await outcomes(asked)
        await leaving[1]
    assert isinstance(error, ShuttingDown)


async def test_a_singleton_that_moves_is_asked_by_its_sibling(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """It stays until nothing else of its shard runs."""
    one, two, client = pair
    home = one if one.is_local(Order, "chief") else two
    asked = soon(client.client(Order)("chief").lead())
    await gates["chief"].came()
    leaving = soon(memory.stop(home))
    await drains(home, "chief")
    gates["chief"].open()
    async with asyncio.timeout(SOON):
        assert await asked == "decided"
        await leaving
        assert await client.singleton(Chief).decide() == "decided"


async def test_a_cron_run_that_lends_its_turn_asks_its_sibling() -> None:
    """Calls of such a run may come back to the singleton, and are known as those of a running handler."""
    clock = SteppedClock()
    async with MemoryCluster(hub, settings=SETTINGS, clock=clock) as memory:
        runners = [await memory.start_runner(), await memory.start_runner()]
        await memory.settled()
        home = runners[not runners[0].is_local(Order, "chief")]
        gates["check"] = Gate()
        await until(lambda: any(cell.is_singleton for cell in host_of(home).cells()), "a leader")
        clock.step(timedelta(minutes=1))
        await home.poll_storage()
        await gates["check"].came()
        leaving = soon(memory.stop(home))
        await drains(home, "chief")
        gates["check"].open()
        async with asyncio.timeout(SOON):
            await leaving
        assert notes["check"][0] == "decided"
        assert notes["chain"] == []


async def test_a_long_chain_within_a_shard_that_drains_ends(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """A asks B, which asks C, which asks B, and so on; each asks many times."""
    one, _, client = pair
    first, second = ids_on(one, 2)
    calls = [soon(client.client(Order)(first).recurse(20)), soon(client.client(Order)(second).rounds(200))]
    await gates[first].came()
    await gates[second].came()
    leaving = soon(memory.stop(one))
    await drains(one, first)
    await drains(one, second)
    gates[first].open()
    gates[second].open()
    async with asyncio.timeout(SOON):
        assert await outcomes(*calls) == [20, 200]
        await leaving


async def test_a_popular_entity_comes_to_rest(memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]) -> None:
    """Handlers elsewhere that never stop asking it do not keep it from moving, and see no error."""
    one, two, client = pair
    (name,) = ids_on(one)
    pestering = [soon(client.client(Broker)(other).pester(name, "stop")) for other in ids_on(two, 40)]
    await until(lambda: _shard(one, name).queued > 20, "a queue")
    async with asyncio.timeout(SOON):
        await memory.stop(one)
        assert await client.client(Stock)(name).take() == two.runner.address  # type: ignore[union-attr]
        notes["stop"].append("enough")
        assert all(isinstance(count, int) for count in await outcomes(*pestering))


@pytest.mark.parametrize("durable", [False, True])
async def test_a_runner_that_leaves_waits_for_what_its_program_asked_elsewhere(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster], *, durable: bool
) -> None:
    """The reply comes although nothing runs here any longer; then the runner is soon gone."""
    one, two, _ = pair
    (name,) = ids_on(two)
    order = one.client(Order)(name)
    asked = soon(order.book() if durable else order.place())
    await gates[name].came()
    leaving = soon(memory.stop(one))
    await until(lambda: not runner_of(one).ownership.owned, "a runner without shards")
    await asyncio.sleep(0.1)
    assert not leaving.done()
    gates[name].open()
    async with asyncio.timeout(SOON):
        assert await asked == two.runner.address  # type: ignore[union-attr]
        await leaving


async def test_a_program_that_goes_on_asking_does_not_hold_its_runner_up(
    memory: MemoryCluster, pair: tuple[Cluster, Cluster, Cluster]
) -> None:
    """Only what was asked before is waited for."""
    one, two, _ = pair
    under_way: deque[tuple[str, asyncio.Task[str]]] = deque()
    leaving: asyncio.Task[None] | None = None
    for name in ids_on(two, 200):
        under_way.append((name, soon(one.client(Order)(name).place())))
        await asyncio.sleep(0.005)
        if len(under_way) == 4:
            leaving = leaving or soon(memory.stop(one))
            oldest, _ = under_way.popleft()
            gates[oldest].open()
        if leaving is not None and leaving.done():
            break
    assert leaving is not None
    assert leaving.done()
    for name, asked in under_way:
        gates[name].open()
        assert isinstance((await outcomes(asked))[0], NotConnected | RunnerUnavailable)


async def test_an_ask_elsewhere_that_outlives_the_grace_time_is_named(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller learns that its handler may go on, and the log says what was not answered."""
    memory.settings = Settings(shards_per_group=16, grace=timedelta(milliseconds=500))
    short = await memory.start_runner()
    other = await memory.start_runner()
    await memory.settled()
    (name,) = ids_on(other)
    asked = soon(short.client(Order)(name).place())
    await gates[name].came()
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(SOON):
            await memory.stop(short)
    assert "asks that were not answered within the grace time: 1; order.place is one" in caplog.text
    (error,) = await outcomes(asked)
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed
    gates[name].open()


async def test_what_outlives_the_grace_time_is_named(memory: MemoryCluster, caplog: pytest.LogCaptureFixture) -> None:
    """By type, id and handler; and the hand-over ends with the grace time."""
    # A quarter of it is left between the end of the drains and that of the runner, however busy the machine is.
    memory.settings = Settings(shards_per_group=16, grace=timedelta(seconds=2))
    one = await memory.start_runner()
    client = await memory.client()
    calls = [soon(client.client(Order)("e0").place()), soon(client.client(Stock)("e1").hold())]
    await gates["e0"].came()
    await gates["stock e1"].came()
    await client.client(Stock)("e2").take()
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(SOON):
            await memory.stop(one)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "order.place(e0)" in said
    assert "stock.hold(e1)" in said
    assert "0 entities" not in said
    assert not any(isinstance(result, str) for result in await outcomes(*calls))


@pytest.mark.parametrize("seed", range(3))
async def test_handlers_call_each_other_while_runners_come_and_go(memory: MemoryCluster, seed: int) -> None:
    """No error, no call that waits for a grace time, and everything took effect once."""
    chance = random.Random(seed)
    client = await _start(memory)
    names = [f"e{n}" for n in range(10)]
    stop: list[bool] = []
    longest = 0.0

    async def call() -> int:
        nonlocal longest
        count = 0
        while not stop:
            name, other = chance.sample(names, 2)
            began = memory.clock.monotonic()
            await client.client(Order)(name).fill(other)
            longest = max(longest, memory.clock.monotonic() - began)
            count += 1
        return count

    calls = [soon(call()) for _ in range(6)]
    for _ in range(8):
        await asyncio.sleep(chance.random() * 0.1)
        if len(memory.runners) > 1 and chance.random() < 0.5:
            await memory.stop(chance.choice(memory.runners))
        elif len(memory.runners) < 4:
            await memory.start_runner()
    stop.append(True)
    counts = await outcomes(*calls)
    expected = 5 * sum(count for count in counts if isinstance(count, int))
    assert all(isinstance(count, int) for count in counts), counts

    async def total() -> int:
        return sum([await client.client(Stock)(name).value() for name in names])

    async with asyncio.timeout(SOON):
        while await total() < expected:
            await asyncio.sleep(0.02)
    assert await total() == expected
    assert longest < SOON


async def _start(memory: MemoryCluster) -> Cluster:
    for _ in range(2):
        await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    return client
