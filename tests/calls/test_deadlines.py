"""Time: deadlines that travel, cancellation that travels, and what an error says about what ran."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from actorhub import (
    ActorhubError,
    CallTimeout,
    Cluster,
    Entity,
    EntityNotAssigned,
    HandlerFailed,
    Hub,
    current,
    handler,
)
from actorhub.cluster import part_of
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, outcomes, soon


class Worker(Entity[int]):
    async def hold(self, how: str = "") -> str:
        await gates[how or current().entity_id].pass_through()
        return "done"

    async def touch(self) -> int:
        self.state += 1
        return self.state

    async def touch_and_hold(self) -> None:
        self.state += 100
        await gates[current().entity_id].pass_through()

    async def value(self) -> int:
        return self.state

    async def left(self) -> float:
        deadline = current().deadline
        assert deadline is not None
        return (deadline - datetime.now(UTC)).total_seconds()

    async def no_deadline(self) -> bool:
        return current().deadline is None

    async def relay(self, path: list[str]) -> list[float]:
        own = await self.left()
        if not path:
            return [own]
        other = current().client(Worker).options(timeout=timedelta(hours=1))(path[0])
        return [own, *await other.relay(path[1:])]

    async def relay_hold(self, other: str) -> str:
        gate = gates[current().entity_id]
        gate.entered += 1
        try:
            return await current().client(Worker)(other).hold()
        except asyncio.CancelledError:
            gate.left.append("cancelled")
            raise

    async def impatient(self, other: str) -> str:
        worker = current().client(Worker).options(timeout=timedelta(milliseconds=60))
        try:
            return await worker(other).hold()
        except CallTimeout as error:
            return f"timed out, possibly executed: {error.possibly_executed}"

    async def stubborn(self) -> str:
        gate = gates[current().entity_id]
        self.state += 1000
        try:
            await gate.pass_through()
        except asyncio.CancelledError:
            gate.log.append("swallowed")
        return "too late"

    @handler(timeout=timedelta(milliseconds=60))
    async def bounded(self) -> None:
        self.state += 100
        await gates[current().entity_id].pass_through()

    async def blocks(self, seconds: float) -> str:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            pass
        return "computed"


hub = Hub()
hub.register(Worker)

SOON = timedelta(milliseconds=80)


async def test_a_deadline_travels_and_shrinks(anywhere: Cluster) -> None:
    """Each entity on a chain sees what is left of the first caller's time, whatever its own options say."""
    worker = anywhere.client(Worker).options(timeout=timedelta(seconds=5))
    first, second, third = await worker("a").relay(["b", "c"])
    assert 4 < third <= second + 0.01 <= first + 0.02 <= 5.03
    assert await anywhere.client(Worker).options(timeout=None)("a").no_deadline()


async def test_the_default_timeout_is_thirty_seconds(cluster: Cluster) -> None:
    """Without options an ask waits for half a minute."""
    assert 29 < await cluster.client(Worker)("a").left() <= 30


async def test_a_running_handler_is_cancelled_at_its_callers_deadline(anywhere: Cluster) -> None:
    """The caller hears that it possibly ran; its change of state is undone."""
    worker = anywhere.client(Worker)
    error = await failure(worker.options(timeout=SOON)("a").touch_and_hold())
    assert isinstance(error, CallTimeout)
    assert error.possibly_executed
    assert "worker.touch_and_hold" in str(error)
    await until(lambda: gates["a"].left == ["cancelled"])
    assert await worker("a").value() == 0


async def test_a_queued_message_never_runs_after_its_deadline(cluster: Cluster) -> None:
    """It is taken out of the mailbox, and the error says that nothing ran."""
    worker = cluster.client(Worker)
    held = soon(worker("a").hold())
    await gates["a"].came()
    error = await failure(worker.options(timeout=SOON)("a").touch())
    assert isinstance(error, CallTimeout)
    assert not error.possibly_executed
    gates["a"].open()
    await held
    assert await worker("a").value() == 0


async def test_without_an_owner_a_call_waits_and_then_fails_as_not_executed(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """While nobody owns the shard a call waits for its deadline; the error says that nothing ran."""
    worker = client.client(Worker)
    await worker("a").touch()
    await memory.kill(runner)
    error = await failure(worker.options(timeout=SOON)("a").touch())
    assert isinstance(error, EntityNotAssigned)
    assert not error.possibly_executed
    assert "no runner owned its shard default:" in str(error)


async def test_without_an_owner_a_call_waits_until_there_is_one(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A call that waits is served by the runner that comes."""
    worker = client.client(Worker)
    await worker("a").touch()
    await memory.kill(runner)
    waiting = soon(worker("a").touch())
    await until(lambda: part_of(client).node.router.statistics().parked == 1)
    await memory.start_runner()
    assert await waiting == 2


async def test_cancelling_a_caller_cancels_the_handler(anywhere: Cluster) -> None:
    """The remote handler gets CancelledError, and the entity goes on with the next message."""
    task = soon(anywhere.client(Worker)("a").touch_and_hold())
    await gates["a"].came()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: gates["a"].left == ["cancelled"])
    assert await anywhere.client(Worker)("a").value() == 0


async def test_cancellation_travels_along_a_chain(cluster: Cluster) -> None:
    """Whoever waits for whom, all are cancelled when the first caller is."""
    task = soon(cluster.client(Worker)("a").relay_hold("b"))
    await gates["b"].came()
    task.cancel()
    await until(lambda: gates["a"].left == gates["b"].left == ["cancelled"])


async def test_a_queued_message_of_a_cancelled_caller_never_runs(cluster: Cluster) -> None:
    """It leaves the mailbox, and those behind it go on."""
    worker = cluster.client(Worker)("a")
    held = soon(worker.hold())
    await gates["a"].came()
    cancelled = soon(worker.touch_and_hold())
    behind = soon(worker.touch())
    await asyncio.sleep(0.02)
    cancelled.cancel()
    await asyncio.sleep(0.02)
    gates["a"].open()
    await held
    assert await behind == 1
    assert gates["a"].entered == 1


async def test_a_call_can_be_cancelled_at_any_moment(cluster: Cluster) -> None:
    """However early or late a caller is cancelled, the entity is free for the next one."""
    worker = cluster.client(Worker)("a")
    for rounds in range(1, 25):
        task = soon(worker.touch())
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(2):
            await worker.value()


async def test_a_handlers_own_timeout_cancels_it(anywhere: Cluster) -> None:
    """@handler(timeout=...) bounds one run; the caller hears CallTimeout, and the state is undone."""
    worker = anywhere.client(Worker)("a")
    error = await failure(worker.bounded())
    assert isinstance(error, CallTimeout)
    assert error.possibly_executed
    assert "longer than its timeout of 0.06 s" in str(error)
    assert gates["a"].left == ["cancelled"]
    assert await worker.value() == 0


async def test_a_handlers_timeout_does_not_count_the_time_in_the_mailbox(cluster: Cluster) -> None:
    """A bounded handler that waits long for its turn has its full time then."""
    worker = cluster.client(Worker)("a")
    held = soon(worker.hold("other"))
    await gates["other"].came()
    bounded = soon(worker.bounded())
    await asyncio.sleep(0.1)
    gates["a"].open()
    gates["other"].open()
    await held
    await bounded
    assert await worker.value() == 100


async def test_a_handler_can_catch_the_timeout_of_what_it_asks(cluster: Cluster) -> None:
    """A shorter timeout inside a handler is its own affair."""
    worker = cluster.client(Worker)
    assert await worker("a").impatient("b") == "timed out, possibly executed: True"
    await until(lambda: gates["b"].left == ["cancelled"])


async def test_a_handler_that_swallows_its_cancellation_does_not_commit(cluster: Cluster) -> None:
    """The caller is gone, so whatever it returns is dropped and its state is undone."""
    worker = cluster.client(Worker)
    error = await failure(worker.options(timeout=SOON)("a").stubborn())
    assert isinstance(error, CallTimeout)
    await until(lambda: gates["a"].log == ["swallowed"])
    assert await worker("a").value() == 0


async def test_a_handler_that_blocks_delays_but_does_not_break(cluster: Cluster) -> None:
    """A handler that computes without an await holds the loop; then everything goes on."""
    worker = cluster.client(Worker)
    found = await outcomes(worker("a").blocks(0.3), *(worker(str(n)).touch() for n in range(10)))
    assert found == ["computed", *[1] * 10]


async def test_a_blocked_loop_past_the_lease_executes_nothing_twice(memory: MemoryCluster) -> None:
    """After three seconds without the loop the runner gives its shards up, takes them again, and loses no call."""
    runner = await memory.start_runner()
    client = await memory.client()
    worker = client.client(Worker)
    await worker("a").touch()
    blocked = soon(failure(worker("b").blocks(2.8)))
    touched = soon(outcomes(*(runner.client(Worker)("a").touch() for _ in range(5))))
    async with asyncio.timeout(15):
        found = await touched
        error = await blocked
    sure = [one for one in found if isinstance(one, int)]
    unsure = [one for one in found if isinstance(one, ActorhubError) and one.possibly_executed]
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed
    async with asyncio.timeout(10):
        value = await worker("a").value()
    assert 1 + len(sure) <= value <= 1 + len(sure) + len(unsure)


async def test_no_error_of_user_code_is_mistaken_for_a_timeout(cluster: Cluster) -> None:
    """TimeoutError that a handler raises itself is its failure, not the caller's deadline."""
    error = await failure(cluster.client(Timers)("a").expire())
    assert isinstance(error, HandlerFailed)
    assert error.type == "TimeoutError"


class Timers(Entity):
    async def expire(self) -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)


hub.register(Timers)
