"""Streams: handlers that are async generators, consumed with a credit window."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta

import msgspec
import pytest

from actorhub import (
    CallCycle,
    CallTimeout,
    Cluster,
    Entity,
    EntityError,
    HandlerFailed,
    Hub,
    MalformedMessage,
    PersistenceError,
    RunnerUnavailable,
    current,
    handler,
)
from actorhub.testing import MemoryCluster, until
from tests.support.gates import gates, soon


class Tick(msgspec.Struct, frozen=True):
    number: int
    text: str = ""


class Stopped(EntityError):
    at: int


class Notes(Entity[list[str]]):
    """Told by streams."""

    async def add(self, text: str) -> None:
        self.state.append(text)

    async def read(self) -> list[str]:
        return self.state


class Ticker(Entity):
    """Streams without state."""

    def __init__(self) -> None:
        self._made = 0

    async def ticks(self, count: int) -> AsyncIterator[Tick]:
        gate = gates[current().entity_id]
        try:
            for number in range(count):
                gate.log.append(f"made {number}")
                yield Tick(number)
        finally:
            gate.log.append("closed")

    async def large(self, count: int, size: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * size

    async def fails_after(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise Stopped(at=count)

    async def crashes(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("no more")

    async def lies(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    async def unencodable(self) -> AsyncIterator[object]:
        yield 1
        yield object()

    async def guarded(self) -> AsyncIterator[int]:
        gate = gates[current().entity_id]
        yield 1
        await gate.pass_through()
        yield 2

    @handler(reentrant=True)
    async def inner(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
            await asyncio.sleep(0)

    async def outer(self, count: int) -> int:
        total = 0
        async for number in current().client(Ticker)(current().entity_id).inner(count):
            total += number
        return total

    async def itself(self) -> AsyncIterator[int]:
        async for number in current().client(Ticker)(current().entity_id).guarded():
            yield number

    async def tells(self, note: str) -> AsyncIterator[int]:
        await current().tell(current().client(Notes)(note).add("first"))
        yield 1
        await current().tell(current().client(Notes)(note).add("second"))
        raise ValueError("the second is not sent")

    async def made(self) -> int:
        self._made += 1
        return self._made


class Journal(Entity[list[int]]):
    """Streams that change state."""

    async def write(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            self.state.append(number)
            yield number

    async def write_and_fail(self) -> AsyncIterator[int]:
        self.state.append(1)
        yield 1
        self.state.append(2)
        raise ValueError("undone")

    async def read(self) -> list[int]:
        return self.state


async def _first(ticks: AsyncIterator[Tick]) -> Tick:
    return await anext(ticks)


async def _rest(items: AsyncIterator[object]) -> int:
    return len([item async for item in items])


hub = Hub()
hub.register(Ticker)
hub.register(Journal)
hub.register(Notes)


async def test_items_arrive_in_the_order_in_which_they_were_made(anywhere: Cluster) -> None:
    """A stream longer than several credit windows loses nothing and mixes nothing."""
    ticks = anywhere.client(Ticker)("a").ticks(2000)
    assert [tick.number async for tick in ticks] == list(range(2000))


async def test_an_empty_stream_ends_at_once(anywhere: Cluster) -> None:
    """A generator without items is a stream without items."""
    assert [tick async for tick in anywhere.client(Ticker)("a").ticks(0)] == []


async def test_large_items_pass(anywhere: Cluster) -> None:
    """Twelve megabytes in items of 100 kB arrive whole."""
    sizes = [len(item) async for item in anywhere.client(Ticker)("a").large(120, 100_000)]
    assert sizes == [100_000] * 120


async def test_the_consumers_window_bounds_the_producer(cluster: Cluster) -> None:
    """A consumer that takes one item and rests lets the producer make no more than the window."""
    async with aclosing(cluster.client(Ticker)("a").ticks(100_000)) as ticks:  # type: ignore[type-var]
        assert await anext(ticks) == Tick(0)
        await until(lambda: len(gates["a"].log) >= 256)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(gates["a"].log) <= 258


async def test_closing_a_stream_cancels_its_producer(cluster: Cluster) -> None:
    """The generator's finally runs when the consumer closes the stream."""
    ticks = cluster.client(Ticker)("a").ticks(100_000)
    assert await anext(ticks) == Tick(0)
    await ticks.aclose()  # type: ignore[attr-defined]
    await until(lambda: "closed" in gates["a"].log)
    with pytest.raises(StopAsyncIteration):
        await anext(ticks)


async def test_leaving_the_loop_early_cancels_the_producer(cluster: Cluster) -> None:
    """A break without any closing is enough: the generator's finally runs and the entity is idle again."""
    async for tick in cluster.client(Ticker)("a").ticks(100_000):
        assert tick == Tick(0)
        break
    await until(lambda: "closed" in gates["a"].log)
    assert await cluster.client(Ticker)("a").made() == 1


async def test_cancelling_the_consumer_cancels_the_producer(cluster: Cluster) -> None:
    """The generator's finally runs when the consuming task is cancelled."""

    async def consume() -> None:
        async for _ in cluster.client(Ticker)("a").guarded():
            pass

    async with asyncio.TaskGroup() as tasks:
        consumer = tasks.create_task(consume())
        await gates["a"].came()
        consumer.cancel()
    await until(lambda: gates["a"].left == ["cancelled"])
    assert await cluster.client(Ticker)("a").made() == 1


async def test_a_stream_closed_at_any_moment_leaves_the_entity_free(cluster: Cluster) -> None:
    """However early or late the consumer goes away, the next handler gets its turn."""
    ticker = cluster.client(Ticker)("a")
    for rounds in range(1, 30):
        async with asyncio.TaskGroup() as tasks:
            consumer = tasks.create_task(_first(ticker.ticks(1000)))
            for _ in range(rounds):
                await asyncio.sleep(0)
            consumer.cancel()
        async with asyncio.timeout(2):
            await ticker.made()


async def test_an_error_comes_after_the_items_before_it(anywhere: Cluster) -> None:
    """A typed error ends the stream behind the last item."""
    stream = anywhere.client(Ticker)("a").fails_after(300)
    got = [await anext(stream) for _ in range(300)]
    with pytest.raises(Stopped) as caught:
        await anext(stream)
    assert got == list(range(300))
    assert caught.value.at == 300


async def test_a_crash_in_a_stream_names_the_exception(cluster: Cluster) -> None:
    """An exception of user code ends the stream as HandlerFailed."""
    stream = cluster.client(Ticker)("a").crashes()
    assert await anext(stream) == 1
    with pytest.raises(HandlerFailed, match="ValueError: no more"):
        await anext(stream)


async def test_an_item_of_another_type_is_the_producers_failure(cluster: Cluster) -> None:
    """The consumer hears that the handler returned something other than it declares."""
    stream = cluster.client(Ticker)("a").lies()
    assert await anext(stream) == 1
    with pytest.raises(HandlerFailed, match="something other than it declares"):
        await anext(stream)


async def test_an_item_that_cannot_be_encoded_ends_the_stream_with_a_typed_error(cluster: Cluster) -> None:
    """Items before it arrive, and the entity goes on with its next message."""
    stream = cluster.client(Ticker)("a").unencodable()
    assert await anext(stream) == 1
    with pytest.raises(MalformedMessage, match=r"ticker\.unencodable: result") as caught:
        await anext(stream)
    assert caught.value.possibly_executed
    assert await cluster.client(Ticker)("a").made() == 1


async def test_handlers_run_between_the_steps_of_a_stream(cluster: Cluster) -> None:
    """A stream that waits for its consumer does not hold the entity."""
    stream = cluster.client(Ticker)("a").ticks(5000)
    assert await anext(stream) == Tick(0)
    async with asyncio.timeout(2):
        assert await cluster.client(Ticker)("a").made() == 1
    rest = [tick.number async for tick in stream]
    assert rest == list(range(1, 5000))


async def test_two_streams_of_one_entity_both_end(cluster: Cluster) -> None:
    """Producers of one entity take turns."""

    async def count() -> int:
        return len([tick async for tick in cluster.client(Ticker)("a").ticks(3000)])

    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(count()), tasks.create_task(count())]
    assert [task.result() for task in both] == [3000, 3000]


async def test_a_reentrant_stream_runs_inside_the_turn_that_consumes_it(cluster: Cluster) -> None:
    """An entity may consume its own reentrant stream, and is free afterwards."""
    ticker = cluster.client(Ticker)("a")
    async with asyncio.timeout(5):
        assert await ticker.outer(1000) == sum(range(1000))
        assert await ticker.made() == 1
        assert await ticker.outer(10) == 45
        assert await ticker.made() == 2


async def test_a_stream_of_an_entity_that_waits_for_it_is_a_cycle(cluster: Cluster) -> None:
    """A generator that consumes another stream of its own entity is refused with the path."""
    with pytest.raises(CallCycle) as caught:
        await anext(cluster.client(Ticker)("a").itself())
    assert caught.value.path == ("ticker/a", "ticker/a")


async def test_a_stream_outlives_the_time_that_its_first_item_had(cluster: Cluster) -> None:
    """The timeout bounds the first sign of life only, also where the producer must queue for turns later."""
    ticker = cluster.client(Ticker)
    stream = ticker.options(timeout=timedelta(milliseconds=150))("a").guarded()
    assert await anext(stream) == 1
    await gates["a"].came()
    other = soon(ticker("a").made())
    await asyncio.sleep(0.3)
    gates["a"].open()
    assert [item async for item in stream] == [2]
    assert await other == 1


async def test_a_stream_that_must_queue_after_its_deadline_goes_on(cluster: Cluster) -> None:
    """A producer that waits for its turn again, later than the first item's timeout, is not dropped."""
    ticker = cluster.client(Ticker)
    stream = ticker.options(timeout=timedelta(milliseconds=150))("a").ticks(1000)
    assert await anext(stream) == Tick(0)
    await until(lambda: len(gates["a"].log) >= 256)
    await asyncio.sleep(0.25)
    async with asyncio.timeout(5):
        assert len([tick async for tick in stream]) == 999


async def test_a_stream_that_never_gives_a_sign_of_life_times_out(cluster: Cluster) -> None:
    """A stream that waits in the mailbox until its deadline fails, and none of it ran."""
    ticker = cluster.client(Ticker)
    first = ticker("a").guarded()
    assert await anext(first) == 1
    await gates["a"].came()
    with pytest.raises(CallTimeout):
        await anext(ticker.options(timeout=timedelta(milliseconds=100))("a").ticks(5))
    gates["a"].open()
    assert [item async for item in first] == [2]
    assert gates["a"].log == []


async def test_each_item_leaves_after_the_commit_of_its_step(memory: MemoryCluster, client: Cluster) -> None:
    """When an item arrives, the state change of its step is in the store."""
    async for number in client.client(Journal)("a").write(5):
        stored = memory.stored("journal", "a")
        assert stored is not None
        assert stored.version >= number + 1
    assert await client.client(Journal)("a").read() == [0, 1, 2, 3, 4]


async def test_a_failing_step_is_rolled_back_and_the_steps_before_it_are_not(cluster: Cluster) -> None:
    """A stream's steps commit one by one."""
    journal = cluster.client(Journal)("a")
    stream = journal.write_and_fail()
    assert await anext(stream) == 1
    with pytest.raises(HandlerFailed, match="undone"):
        await anext(stream)
    assert await journal.read() == [1]


async def test_what_a_stream_tells_leaves_with_the_step_that_commits(cluster: Cluster) -> None:
    """A tell of a finished step is sent, one of a failed step is not."""
    stream = cluster.client(Ticker)("a").tells("n")
    assert await anext(stream) == 1
    with pytest.raises(HandlerFailed):
        await anext(stream)
    notes = cluster.client(Notes)("n")
    async with asyncio.timeout(5):
        while not await notes.read():
            await asyncio.sleep(0.005)
    assert await notes.read() == ["first"]


async def test_a_refused_commit_ends_the_stream_and_frees_the_entity(memory: MemoryCluster, client: Cluster) -> None:
    """A stream whose shard was taken behind its back fails typed; no item of the refused step arrives."""
    journal = client.client(Journal)("a")
    stream = journal.write(100_000)
    assert await anext(stream) == 0
    shard = client.shard_of(Journal, "a")
    assert memory.runners[0].runner is not None
    memory.store.take([shard], memory.runners[0].runner)
    with pytest.raises((PersistenceError, RunnerUnavailable)) as caught:
        await _rest(stream)
    assert caught.value.possibly_executed
    async with asyncio.timeout(10):
        stored = memory.stored("journal", "a")
        assert stored is not None
        assert len(await journal.read()) == stored.version


async def test_a_stream_cannot_be_awaited_or_told(cluster: Cluster) -> None:
    """Misuse of a stream is a TypeError that says what to do."""
    with pytest.raises(TypeError, match="async for"):
        await cluster.client(Ticker)("a").ticks(1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="stream"):
        await cluster.tell(cluster.client(Ticker)("a").ticks(1))  # type: ignore[arg-type]


async def test_a_stream_that_nobody_asked_for_an_item_warns(client: Cluster) -> None:
    """A dropped stream is a mistake like a dropped call."""
    with pytest.warns(RuntimeWarning, match=r"call of ticker\.ticks was never"):
        client.client(Ticker)("a").ticks(1)


async def test_a_killed_runner_ends_its_streams_with_an_unknown_outcome(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """The consumer of a stream on a killed runner learns it at once."""
    stream = client.client(Ticker)("a").guarded()
    assert await anext(stream) == 1
    await memory.kill(runner)
    with pytest.raises(RunnerUnavailable) as caught:
        await anext(stream)
    assert caught.value.possibly_executed


async def test_an_entity_with_a_lost_consumer_can_be_passivated(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A client that vanishes in the middle of a stream leaves no producer behind."""
    stream = client.client(Ticker)("a").ticks(100_000)
    assert await anext(stream) == Tick(0)
    memory.cut(client, runner)
    await until(lambda: "closed" in gates["a"].log)
    with pytest.raises(RunnerUnavailable):
        await _rest(stream)


async def test_a_runner_that_leaves_does_not_wait_for_streams(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A graceful stop cancels producers; their consumers hear that the entity moved."""
    stream = client.client(Ticker)("a").ticks(100_000)
    assert await anext(stream) == Tick(0)
    begin = asyncio.get_running_loop().time()
    await memory.stop(runner)
    assert asyncio.get_running_loop().time() - begin < 1.5
    assert "closed" in gates["a"].log
    with pytest.raises(RunnerUnavailable, match="moved or its runner is leaving"):
        await _rest(stream)
