"""Runs that fail: repeated with pauses, counted before they start, buried when their number is reached."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import ActorhubError, Cluster, HandlerFailed, UnknownMessage
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Busy, Log, Poisoned, Slow, hub, owner, read
from tests.support.gates import failure, gates, soon
from tests.support.parts import host_of

__all__ = ["hub"]


async def test_a_crashed_run_is_repeated(anywhere: Cluster) -> None:
    """The third of three runs succeeds; the state is that of one run."""
    log = anywhere.client(Log)("a")
    assert await log.crash(2) == 3
    assert gates["a"].log == ["run 1", "run 2", "run 3"]
    assert await log.read() == ["crashed"]


async def test_a_message_that_always_crashes_becomes_a_dead_letter(memory: MemoryCluster, cluster: Cluster) -> None:
    """After exactly its attempts; payload, errors and times are kept, and every caller gets the last error."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.crash(9))
    asked = soon(failure(cluster.reply(told)))
    for error in (await asked, await failure(cluster.reply(told))):
        assert isinstance(error, HandlerFailed)
        assert error.type == "ValueError"
        assert "no luck" in error.message
        assert "entities.py" in error.traceback
    assert gates["a"].log == ["run 1", "run 2", "run 3"]
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.state == MessageState.DEAD
    assert row.body is not None
    assert [(run.attempt, run.error_type) for run in row.history] == [(n, "ValueError") for n in (1, 2, 3)]
    assert all("no luck" in run.traceback for run in row.history)
    assert [run.at for run in row.history] == sorted(run.at for run in row.history)
    assert await log.add("a neighbour goes on") == 1


async def test_others_run_while_a_message_waits_for_its_next_run(anywhere: Cluster) -> None:
    """A failing message does not hold up its entity."""
    log = anywhere.client(Log)("a")
    told = await anywhere.tell(log.crash_slowly())
    await until(lambda: gates["a"].entered == 1)
    async with asyncio.timeout(2):
        assert await log.add("meanwhile") == 1
    assert await anywhere.reply(told) == 2


async def test_domain_errors_that_are_named_are_retried(anywhere: Cluster) -> None:
    """Retry(on=...) repeats; the last one is the reply."""
    log = anywhere.client(Log)("a")
    assert await log.busy(2) == 3
    with pytest.raises(Busy) as caught:
        await log.busy(9)
    assert caught.value.seen == 3


async def test_a_handler_out_of_time_is_repeated(anywhere: Cluster) -> None:
    """Its own timeout counts as a failed run."""
    log = anywhere.client(Log)("a")
    assert await log.hang(1) == 2
    error = await failure(log.hang(9))
    assert isinstance(error, HandlerFailed)
    assert error.type == "CallTimeout"
    assert error.possibly_executed


async def test_a_result_that_cannot_be_encoded_is_a_stored_failure(memory: MemoryCluster, cluster: Cluster) -> None:
    """Nobody hangs, nothing is committed, neighbours go on."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.unencodable())
    behind = soon(log.add("behind"))
    error = await failure(cluster.reply(told))
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.state == MessageState.DEAD
    assert await behind == 1


async def test_an_entity_that_cannot_be_made_fails_its_messages(cluster: Cluster) -> None:
    """A failing on_activate uses the message's attempts up, then the error is its reply; others go on."""
    error = await failure(cluster.client(Poisoned)("p").attempt())
    assert isinstance(error, HandlerFailed)
    assert "it cannot be made" in str(error)
    assert await cluster.client(Log)("a").add("fine") == 1


async def test_a_dead_letter_can_be_reset(memory: MemoryCluster, cluster: Cluster) -> None:
    """It runs again as if for the first time, at once; its reply then is the new one."""
    poisoned = cluster.client(Poisoned)("p")
    told = await cluster.tell(poisoned.attempt())
    assert isinstance(await failure(cluster.reply(told)), HandlerFailed)
    gates["p"].log.append("well")
    assert await cluster.reset(told)
    assert await cluster.reply(told) == 1


async def test_a_dead_letter_can_be_cancelled(memory: MemoryCluster, cluster: Cluster) -> None:
    """It is no longer a dead letter, and cannot be reset."""
    told = await cluster.tell(cluster.client(Log)("a").crash(9))
    assert isinstance(await failure(cluster.reply(told)), HandlerFailed)
    assert await cluster.cancel(told)
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.state == MessageState.CANCELLED
    assert not await cluster.reset(told)
    assert not await cluster.cancel(told)


async def test_a_message_that_waits_for_its_next_run_can_be_reset(cluster: Cluster) -> None:
    """It runs at once, from the first attempt on, instead of in an hour; who waits gets the reply."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.crash_for_an_hour())
    waiting = soon(cluster.reply(told))
    await until(lambda: gates["a"].entered == 1)
    async with asyncio.timeout(5):
        while not await cluster.reset(told):
            await asyncio.sleep(0.01)
        assert await waiting == 1
    assert gates["a"].entered == 2


async def test_what_ran_or_runs_is_not_run_again(cluster: Cluster) -> None:
    """A running one goes on; one with its reply keeps it; of an unknown one there is nothing."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.hold())
    await gates["a"].came()
    assert await cluster.reset(told)
    gates["a"].open()
    assert await cluster.reply(told) == 1
    assert not await cluster.reset(told)
    assert not await cluster.reset(4711)
    assert isinstance(await failure(cluster.reply(4711)), UnknownMessage)
    assert await log.read() == ["held"]


async def test_a_message_with_one_attempt_survives_the_move_of_its_shard(memory: MemoryCluster) -> None:
    """It waited for its entity's activation, and runs once, as its first run, wherever that is."""
    first = await memory.start_runner()
    client = await memory.client()
    asked = soon(client.client(Slow)("s").attempt())
    await gates["s comes"].came()
    await memory.start_runner()
    stopping = soon(memory.stop(first))
    await until(lambda: first.is_shutting_down)
    gates["s comes"].open()
    gates["s goes"].open()
    await stopping
    async with asyncio.timeout(10):
        assert await asked == 1


async def test_a_run_that_never_started_is_not_counted_when_its_entity_leaves(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A message with one attempt that comes while its entity is being passivated runs at the next activation."""
    gates["s comes"].open()
    slow = client.client(Slow)("s")
    assert await slow.attempt() == 1
    cells = host_of(runner).types["slow"].cells
    host_of(runner).activations.close(cells["s"])
    await gates["s goes"].came()
    asked = soon(slow.attempt())
    await until(lambda: host_of(runner).delivery.statistics().in_memory > 0)
    await asyncio.sleep(0.02)
    gates["s goes"].open()
    async with asyncio.timeout(10):
        assert await asked == 1


async def test_a_message_that_loses_every_runner_is_buried(memory: MemoryCluster) -> None:
    """Runs are counted before they start: a message whose runners die becomes a dead letter; its neighbours go on."""
    runners = [await memory.start_runner() for _ in range(4)]
    await memory.settled()
    client = await memory.client()
    log = client.client(Log)("a")
    told = await client.tell(log.hold())
    behind = await client.tell(log.add("behind"))
    for deaths in range(1, 4):
        await gates["a"].came(deaths)
        await memory.kill(owner(memory, client, Log, "a"))
    error = await failure(client.reply(told, timeout=timedelta(seconds=10)))
    assert isinstance(error, HandlerFailed)
    assert error.type == "RunnerLost"
    assert await client.reply(behind, timeout=timedelta(seconds=10)) == 1
    assert gates["a"].entered == 3
    assert len(runners) == 4
    assert await read(client, "a", 1) == ["behind"]
