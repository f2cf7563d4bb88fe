"""Handlers that do not end when their time is over."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest

from actorhub import ActorhubError, CallTimeout, Cluster, Entity, Hub, Retry, current, handler
from actorhub.testing import MemoryCluster, state_of, until
from tests.support.gates import failure, gates, soon

_TIMEOUT = timedelta(milliseconds=20)


async def _swallow(gate: str) -> None:
    """Go on until the gate is open, whatever is thrown in."""
    held = gates[gate]
    held.enter()
    for _ in range(1000):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
        if held.is_open:
            return


class Robot(Entity[list[str]]):
    """Swallows its cancellation."""

    @handler(timeout=_TIMEOUT)
    async def work(self, gate: str) -> str:
        self.state.append("half done")
        await _swallow(gate)
        await self.save()
        return "nobody hears this"

    @handler(durable=True, timeout=_TIMEOUT, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def work_for_good(self, gate: str) -> None:
        self.state.append("half done")
        await _swallow(gate)

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def fail_once(self, gate: str) -> int:
        gates[gate].enter()
        if gates[gate].entered == 1:
            raise ValueError("once")
        return gates[gate].entered

    @handler(readonly=True, timeout=_TIMEOUT)
    async def read_stuck(self, gate: str) -> None:
        await _swallow(gate)

    @handler(readonly=True)
    async def read(self, gate: str) -> list[str]:
        await gates[gate].pass_through()
        return self.state

    @handler(reentrant=True, timeout=_TIMEOUT)
    async def stuck_within(self, gate: str) -> None:
        self.state.append("within")
        await _swallow(gate)

    async def around(self, gate: str) -> None:
        self.state.append("around")
        await current().client(Robot)(current().entity_id).stuck_within(gate)

    async def without_timeout(self, gate: str) -> str:
        self.state.append("half done")
        await _swallow(gate)
        return "nobody hears this"

    async def items(self, gate: str) -> AsyncIterator[int]:
        yield 0
        self.state.append("half done")
        await _swallow(gate)
        yield 1

    async def add(self, mark: str) -> list[str]:
        self.state.append(mark)
        return self.state


class Pool(Entity, concurrency=3):
    """Has no state, and runs several handlers at a time."""

    @handler(timeout=_TIMEOUT)
    async def stuck(self, gate: str) -> None:
        await _swallow(gate)

    async def work(self, gate: str) -> str:
        await gates[gate].pass_through()
        return "done"


hub = Hub()
hub.register(Robot)
hub.register(Pool)


async def test_a_handler_that_swallows_its_timeout_is_given_up(
    memory: MemoryCluster, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller is answered, who waits is served by a new activation, and the log says where it is stuck."""
    robot = cluster.client(Robot)("a")
    await robot.add("before")
    working = soon(failure(robot.work("gate")))
    await gates["gate"].came()
    adding = soon(robot.add("after"))
    error = await working
    assert isinstance(error, CallTimeout)
    assert error.possibly_executed
    assert await adding == ["before", "after"]
    records = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 1
    assert "robot.work(a)" in records[0]
    assert "await _swallow(gate)" in records[0]
    gates["gate"].open()
    await asyncio.sleep(0.05)
    assert await robot.add("last") == ["before", "after", "last"]
    assert await state_of(memory, Robot, "a") == ["before", "after", "last"]


@pytest.mark.parametrize("how", ["deadline", "cancelled", "consumer leaves"])
async def test_a_handler_without_a_timeout_is_given_up_once_nobody_waits_for_it(
    memory: MemoryCluster, cluster: Cluster, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """It is cancelled because its caller went away; if it swallows that, its entity does not wait for it."""
    robot = cluster.client(Robot)("a")
    await robot.add("before")
    if how == "consumer leaves":
        call = soon(_two_items(robot.items("gate")))
    else:
        limit = timedelta(milliseconds=50) if how == "deadline" else None
        call = soon(_ask(cluster.client(Robot).options(timeout=limit)("a"), "gate"))
    await gates["gate"].came()
    if how != "deadline":
        call.cancel()
    async with asyncio.timeout(5):
        assert await robot.add("after") == ["before", "after"]
    assert "went on 1 s after it was cancelled, so it was abandoned" in caplog.text
    gates["gate"].open()
    await asyncio.wait((call,))
    await asyncio.sleep(0.05)
    assert await state_of(memory, Robot, "a") == ["before", "after"]


async def _ask(robot: Robot, gate: str) -> None:
    await robot.without_timeout(gate)


async def _two_items(stream: AsyncIterator[int]) -> None:
    assert await anext(stream) == 0
    await anext(stream)


async def test_a_stuck_durable_message_becomes_a_dead_letter(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of its runs is given up in turn, the entity goes on, and the log names what is not tried again."""
    robot = cluster.client(Robot)("a")
    message = await cluster.tell(robot.work_for_good("gate"))
    with pytest.raises(ActorhubError, match="ran longer than its timeout"):
        await cluster.reply(message)
    assert f"robot.work_for_good(a): message {message} has failed for good, in attempt 2, and is a" in caplog.text
    assert gates["gate"].entered >= 2
    assert await robot.add("after") == ["after"]
    gates["gate"].open()


async def test_a_retry_that_waits_for_a_stuck_handler_runs_soon_after_it(cluster: Cluster) -> None:
    """Its message leaves memory with the activation, and is not left in the store until the next regular scan."""
    robot = cluster.client(Robot)("a")
    retried, stuck = soon(robot.fail_once("once")), soon(failure(robot.work("gate")))
    assert isinstance(await stuck, CallTimeout)
    async with asyncio.timeout(4):
        assert await retried == 2
    gates["gate"].open()


async def test_a_stuck_reader_takes_no_other_run_with_it(cluster: Cluster) -> None:
    """Who shares the entity with it goes on, and writers get their turn."""
    robot = cluster.client(Robot)("a")
    stuck, reading = soon(failure(robot.read_stuck("gate"))), soon(robot.read("reader"))
    await gates["reader"].came()
    assert isinstance(await stuck, CallTimeout)
    gates["reader"].open()
    assert await reading == []
    assert await robot.add("after") == ["after"]
    gates["gate"].open()


async def test_a_stuck_handler_gives_its_place_among_others_back(cluster: Cluster) -> None:
    """With three at a time, three stuck ones do not keep a fourth out."""
    pool = cluster.client(Pool)("a")
    working = soon(failure(pool.work("never")))
    await asyncio.gather(*(failure(pool.stuck("gate")) for _ in range(2)))
    await asyncio.gather(*(failure(pool.stuck("gate")) for _ in range(2)))
    gates["gate"].open()
    assert not working.done()
    gates["open"].open()
    assert await pool.work("open") == "done"


async def test_a_stuck_nested_run_takes_the_run_around_it_with_it(memory: MemoryCluster, cluster: Cluster) -> None:
    """Nothing of either is committed."""
    robot = cluster.client(Robot)("a")
    await robot.add("before")
    with pytest.raises(ActorhubError) as caught:
        await robot.around("gate")
    assert caught.value.possibly_executed
    assert await robot.add("after") == ["before", "after"]
    assert await state_of(memory, Robot, "a") == ["before", "after"]
    gates["gate"].open()


async def test_a_runner_leaves_in_time_with_stuck_handlers(memory: MemoryCluster) -> None:
    """Its shards go to another runner, which serves the entities."""
    first = await memory.start_runner()
    working = [soon(failure(first.client(Robot)(f"{number}").work("gate"))) for number in range(5)]
    await gates["gate"].came(5)
    second = await memory.start_runner()
    async with asyncio.timeout(10):
        await memory.stop(first)
    assert all(isinstance(error, CallTimeout) for error in await asyncio.gather(*working))
    await until(lambda: second.is_local(Robot, "0"))
    assert await second.client(Robot)("0").add("after") == ["after"]
    gates["gate"].open()
