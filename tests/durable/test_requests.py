"""reply(), cancel() and poll_storage(): by id, from anybody, for messages in every state."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from actorhub import CallTimeout, Cluster, HandlerFailed, MessageCancelled, UnknownMessage
from actorhub.engine.durable.requests import MessageRequests
from actorhub.testing import MemoryCluster
from tests.durable.entities import Log, Narrow, hub, owner
from tests.support.gates import failure, gates, outcomes, soon

__all__ = ["hub"]


async def test_every_waiter_gets_the_reply(memory: MemoryCluster, runner: Cluster, client: Cluster) -> None:
    """Several of them, in several processes, early and late."""
    other = await memory.client()
    told = await client.tell(client.client(Log)("a").hold())
    await gates["a"].came()
    waiters = soon(outcomes(*(cluster.reply(told) for cluster in (client, other, runner) for _ in range(3))))
    await asyncio.sleep(0.02)
    gates["a"].open()
    assert await waiters == [1] * 9
    assert await outcomes(*(cluster.reply(told) for cluster in (client, other, runner))) == [1] * 3


async def test_a_waiter_out_of_time_leaves_the_others(cluster: Cluster) -> None:
    """CallTimeout for one, the value for the one that waits on; a cancelled waiter is forgotten."""
    told = await cluster.tell(cluster.client(Log)("a").hold())
    await gates["a"].came()
    patient, cancelled = soon(cluster.reply(told, timeout=None)), soon(cluster.reply(told))
    error = await failure(cluster.reply(told, timeout=timedelta(milliseconds=50)))
    assert isinstance(error, CallTimeout)
    cancelled.cancel()
    gates["a"].open()
    assert await patient == 1


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_waiters_find_the_reply_at_the_next_owner(memory: MemoryCluster, end: str) -> None:
    """Whoever waits when the owner ends hears the reply of the next one."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client, other = await memory.client(), await memory.client()
    told = await client.tell(client.client(Log)("a").hold())
    behind = await client.tell(client.client(Log)("a").add("behind"))
    await gates["a"].came()
    host = owner(memory, client, Log, "a")
    runner = next(runner for runner in memory.runners if runner is not host)
    waiters = soon(outcomes(*(cluster.reply(i) for cluster in (client, other, runner) for i in (told, behind))))
    await asyncio.sleep(0.02)
    ending = soon(getattr(memory, end)(host))
    if end == "kill":
        await gates["a"].came(2)
    gates["a"].open()
    async with asyncio.timeout(10):
        assert await waiters == [1, 2] * 3
    await ending


@pytest.mark.parametrize("number", range(3))
async def test_reply_and_cancel_go_on_when_any_runner_dies(memory: MemoryCluster, number: int) -> None:
    """Also the one that a client without a database asks."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    await memory.settled()
    log = client.client(Log)
    told = [await client.tell(log(f"e{n}").add("x")) for n in range(20)]
    later = [await client.tell(log(f"e{n}").add("x"), delay=timedelta(hours=1)) for n in range(20)]
    calls = soon(outcomes(*(client.reply(i) for i in told), *(client.cancel(i) for i in later)))
    for _ in range(2):
        await asyncio.sleep(0)
    await memory.kill(memory.runners[number])
    async with asyncio.timeout(15):
        assert await calls == [1] * 20 + [True] * 20
    found = await outcomes(*(client.reply(i) for i in later))
    assert all(isinstance(error, MessageCancelled) for error in found)


async def test_reply_waits_for_a_runner(memory: MemoryCluster) -> None:
    """With no runner at all it waits to its own timeout, or for the first one."""
    first = await memory.start_runner()
    client = await memory.client()
    told = await client.tell(client.client(Log)("a").hold())
    await gates["a"].came()
    await memory.kill(first)
    error = await failure(client.reply(told, timeout=timedelta(seconds=0.2)))
    assert isinstance(error, CallTimeout)
    waiting = soon(client.reply(told))
    await asyncio.sleep(0.1)
    gates["a"].open()
    await memory.start_runner()
    async with asyncio.timeout(10):
        assert await waiting == 1


async def test_reply_of_an_unknown_message(anywhere: Cluster) -> None:
    """It says that there is none, at once."""
    async with asyncio.timeout(2):
        for message_id in (1, 0, -1, 2**62):
            assert isinstance(await failure(anywhere.reply(message_id)), UnknownMessage)
            assert not await anywhere.cancel(message_id)
            assert not await anywhere.reset(message_id)


async def test_the_id_of_a_volatile_message_is_unknown(cluster: Cluster) -> None:
    """Nothing is stored of it."""
    told = await cluster.tell(cluster.client(Log)("a").add_now("x"))
    assert isinstance(await failure(cluster.reply(told)), UnknownMessage)


async def test_a_queued_message_can_be_cancelled(anywhere: Cluster) -> None:
    """It never runs; its asker and its waiters hear it; its neighbours run in order."""
    log = anywhere.client(Log)("a")
    held = soon(log.hold())
    await gates["a"].came()
    told = [await anywhere.tell(log.add(str(number))) for number in range(4)]
    waiting = soon(failure(anywhere.reply(told[1])))
    assert await anywhere.cancel(told[1])
    assert isinstance(await waiting, MessageCancelled)
    assert not await anywhere.cancel(told[1])
    gates["a"].open()
    assert await held == 1
    assert await anywhere.reply(told[3]) == 4
    assert await log.read() == ["held", "0", "2", "3"]


async def test_a_message_that_waits_in_the_store_can_be_cancelled(memory: MemoryCluster, cluster: Cluster) -> None:
    """Behind a full mailbox, too."""
    narrow = cluster.client(Narrow)("n")
    await cluster.tell(narrow.hold())
    await gates["n"].came()
    told = [await cluster.tell(narrow.put(number)) for number in range(10)]
    waiting = soon(failure(cluster.reply(told[8])))
    await asyncio.sleep(0.02)
    assert await cluster.cancel(told[8])
    assert isinstance(await waiting, MessageCancelled)
    gates["n"].open()
    assert await cluster.reply(told[9]) == 9
    assert await narrow.read() == [0, 1, 2, 3, 4, 5, 6, 7, 9]


async def test_one_of_many_cancels_wins(cluster: Cluster) -> None:
    """Cancelling one message many times at once never fails, and somebody hears that it worked."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.add("x"), delay=timedelta(hours=1))
    found = await outcomes(*(cluster.cancel(told) for _ in range(10)))
    assert True in found
    assert set(found) <= {True, False}
    assert await log.read() == []


async def test_cancel_and_run_exclude_each_other(cluster: Cluster) -> None:
    """Of a message that is cancelled about when it becomes due, exactly one of both happens."""
    log = cluster.client(Log)
    told = [
        await cluster.tell(log(f"e{n}").add("x"), delay=timedelta(milliseconds=50 + 2 * (n % 20))) for n in range(60)
    ]
    await asyncio.sleep(0.06)
    found = await outcomes(*(cluster.cancel(message_id) for message_id in told))
    for number, (message_id, cancelled) in enumerate(zip(told, found, strict=True)):
        (reply,) = await outcomes(cluster.reply(message_id))
        ran = await log(f"e{number}").read() == ["x"]
        assert ran == (reply == 1)
        assert (cancelled is True) == isinstance(reply, MessageCancelled)


async def test_a_reset_message_keeps_who_waits(cluster: Cluster) -> None:
    """Waiters of a message that is run at once get its reply."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.add("x"), delay=timedelta(hours=1))
    waiters = soon(outcomes(*(cluster.reply(told) for _ in range(3))))
    await asyncio.sleep(0.02)
    assert await cluster.reset(told)
    async with asyncio.timeout(3):
        assert await waiters == [1, 1, 1]


async def test_a_runner_of_the_release_before_is_asked_until_the_run_is_over(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses to cancel a message that runs; whoever owns it afterwards, or once it is over, decides."""
    told = await cluster.tell(cluster.client(Log)("a").hold())
    await gates["a"].came()
    refusals: list[str] = []
    wait = MessageRequests._until_not_running

    async def refuse(self: MessageRequests, *arguments: Any) -> None:
        refusals.append("it is running")
        if len(refusals) < 3:
            raise HandlerFailed("AlreadyProcessing", "try again later")
        await wait(self, *arguments)

    monkeypatch.setattr(MessageRequests, "_until_not_running", refuse)
    async with asyncio.timeout(5):
        assert await cluster.cancel(told)
    assert isinstance(await failure(cluster.reply(told)), MessageCancelled)
    assert len(refusals) == 3
