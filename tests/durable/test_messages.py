"""Durable asks and tells: stored before they are acknowledged, one commit per run, nothing leaves before it."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import (
    CallTimeout,
    Cluster,
    HandlerFailed,
    MalformedMessage,
    MessageTooLarge,
)
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.testing import MemoryCluster
from tests.durable.entities import Hooked, Log, Numbers, Refused, Sender, hub, read
from tests.support.gates import failure, gates, outcomes, soon

__all__ = ["hub"]


async def test_a_tell_is_stored_when_it_returns(memory: MemoryCluster, cluster: Cluster) -> None:
    """While the entity is busy, the row is there; its handler runs later, once."""
    log = cluster.client(Log)("a")
    held = soon(log.hold())
    await gates["a"].came()
    message_id = await cluster.tell(log.add("one"))
    row = memory.store.messages.find(message_id)
    assert row is not None
    assert row.state == MessageState.PENDING
    gates["a"].open()
    await held
    assert await cluster.reply(message_id) == 2
    assert await log.read() == ["held", "one"]


async def test_an_ask_returns_the_reply_of_its_commit(anywhere: Cluster) -> None:
    """The value comes back, and what was replied is committed."""
    log = anywhere.client(Log)("a")
    assert [await log.add("one"), await log.add("two")] == [1, 2]
    assert await log.read() == ["one", "two"]


async def test_ids_grow_with_each_message_of_a_sender(anywhere: Cluster) -> None:
    """Message ids are snowflakes in the order in which they were told."""
    log = anywhere.client(Log)("a")
    ids = [await anywhere.tell(log.add(str(number))) for number in range(20)]
    assert ids == sorted(set(ids))


async def test_messages_of_one_sender_run_in_order(anywhere: Cluster) -> None:
    """Durable tells to one entity run in the order in which they were accepted, from the first one on."""
    log = anywhere.client(Log)("a")
    for number in range(40):
        await anywhere.tell(log.add(str(number)))
    assert await read(anywhere, "a", 40) == [str(number) for number in range(40)]


async def test_durable_and_volatile_tells_run_in_one_order(cluster: Cluster) -> None:
    """As long as its mailbox has room, an entity's messages of both kinds share one line."""
    log = cluster.client(Log)("a")
    await log.add("first")
    for number in range(40):
        await cluster.tell(log.add_now(str(number)) if number % 3 == 0 else log.add(str(number)))
    assert await read(cluster, "a", 41) == ["first", *(str(number) for number in range(40))]


async def test_messages_that_are_sent_at_once_run_in_order(cluster: Cluster) -> None:
    """Asks that one caller starts without waiting keep their order, durable or not."""
    log = cluster.client(Log)("a")
    calls = [log.add_now(str(n)) if n % 3 == 0 else log.add(str(n)) for n in range(30)]
    assert await outcomes(*calls) == list(range(1, 31))
    assert await log.read() == [str(number) for number in range(30)]


async def test_the_reply_can_be_asked_for_later(anywhere: Cluster) -> None:
    """reply() returns the stored value again and again."""
    message_id = await anywhere.tell(anywhere.client(Log)("a").add("one"))
    assert await anywhere.reply(message_id) == 1
    assert await anywhere.reply(message_id) == 1


async def test_a_caller_out_of_time_hears_it_and_the_message_runs(cluster: Cluster) -> None:
    """An ask that waits too long fails with CallTimeout, perhaps executed; the message is done nevertheless."""
    log = cluster.client(Log)
    held = soon(log("a").hold())
    await gates["a"].came()
    error = await failure(log.options(timeout=timedelta(milliseconds=50))("a").add("late"))
    assert isinstance(error, CallTimeout)
    assert error.possibly_executed
    gates["a"].open()
    await held
    assert await read(cluster, "a", 2) == ["held", "late"]


async def test_a_cancelled_caller_does_not_cancel_the_message(cluster: Cluster) -> None:
    """Cancelling who waits leaves a stored message alone, queued or running."""
    log = cluster.client(Log)("a")
    first, second = soon(log.hold()), soon(log.add("queued"))
    await gates["a"].came()
    await cluster.tell(log.add("behind"))
    first.cancel()
    second.cancel()
    await asyncio.sleep(0)
    gates["a"].open()
    assert await read(cluster, "a", 3) == ["held", "queued", "behind"]


async def test_a_domain_error_is_the_reply(anywhere: Cluster) -> None:
    """It is raised with its fields, also late; the state is as before, and the handler ran once."""
    log = anywhere.client(Log)("a")
    await log.add("one")
    message_id = await anywhere.tell(log.refuse("sold out"))
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            await anywhere.reply(message_id)
        assert caught.value.why == "sold out"
    with pytest.raises(Refused):
        await log.refuse("again")
    assert await log.read() == ["one"]
    assert gates["a"].log.count("refused") == 2


async def test_malformed_arguments_are_answered_and_run_nothing(memory: MemoryCluster, cluster: Cluster) -> None:
    """MalformedMessage names the field; neighbours go on."""
    log = cluster.client(Log)("a")
    found = await outcomes(log.add(7), log.add("fine"))  # type: ignore[arg-type]
    assert isinstance(found[0], MalformedMessage)
    assert "text" in str(found[0])
    assert not found[0].possibly_executed
    assert found[1] == 1


async def test_arguments_beyond_the_limit_are_refused_before_they_are_stored(
    memory: MemoryCluster, cluster: Cluster
) -> None:
    """MessageTooLarge comes at once, and nothing is stored."""
    error = await failure(cluster.client(Log)("a").add("x" * 5_000_000))
    assert isinstance(error, MessageTooLarge)
    assert not memory.store.messages.messages(MessageFilter())


async def test_what_a_handler_told_is_stored_with_its_commit(memory: MemoryCluster, cluster: Cluster) -> None:
    """Before the commit nothing is there; afterwards the told message runs once."""
    sender = cluster.client(Sender)("s")
    held = soon(sender.send_and_hold("a", "one"))
    await gates["s"].came()
    assert len(memory.store.messages.messages(MessageFilter())) == 1
    gates["s"].open()
    told = await held
    assert await cluster.reply(told) == 1
    assert await cluster.client(Log)("a").read() == ["one"]


async def test_nothing_leaves_a_handler_that_raises(memory: MemoryCluster, cluster: Cluster) -> None:
    """A crashed run and a domain error send nothing; the run that succeeds sends its own."""
    sender = cluster.client(Sender)("s")
    assert await sender.send_and_crash("a", "run") == 1
    assert isinstance(await failure(sender.send_and_refuse("a", "refused")), Refused)
    assert isinstance(await failure(sender.send_now("a", "failed", fail=True)), HandlerFailed)
    assert await read(cluster, "a", 1) == ["run 2"]
    assert await sender.sent() == 1
    assert len(memory.store.messages.messages(MessageFilter(entity_type="log"))) == 1


async def test_volatile_handlers_tell_durably(cluster: Cluster) -> None:
    """Changing ones and readonly ones; the told message is stored with their commit and can be asked for."""
    sender = cluster.client(Sender)("s")
    first = await sender.send_now("a", "one")
    assert await cluster.reply(first) == 1
    second = await sender.send_reading("a", "two")
    assert await cluster.reply(second) == 2


async def test_a_chain_of_tells_to_one_entity_keeps_its_order(anywhere: Cluster) -> None:
    """What one entity tells another in one run after the other arrives in that order."""
    sender = anywhere.client(Sender)("s")
    for number in range(20):
        await (sender.send if number % 2 else sender.send_now)("a", str(number))
    assert await read(anywhere, "a", 20) == [str(number) for number in range(20)]


async def test_streams_tell_durably(anywhere: Cluster) -> None:
    """What a stream's steps told is stored by the commits of the steps."""
    items = [item async for item in anywhere.client(Sender)("s").stream("a", 3)]
    assert items == [0, 1, 2]
    assert await read(anywhere, "a", 3) == ["item 0", "item 1", "item 2"]


async def test_hooks_tell_durably(anywhere: Cluster) -> None:
    """What on_activate and on_deactivate told is stored with their commits."""
    assert await anywhere.client(Hooked)("a").ping() == 1
    assert (await read(anywhere, "a", 2))[:2] == ["activated", "deactivated"]


async def test_a_told_message_with_a_used_key_fails_the_run(cluster: Cluster) -> None:
    """With the same payload it is the first message; with another one nothing of the run is committed."""
    sender = cluster.client(Sender)("s")
    first = await sender.send_later("a", "one", key="k")
    assert await cluster.reply(first) == 1
    await sender.send_later("a", "one", key="k")
    error = await failure(sender.send_later("a", "other", key="k"))
    assert isinstance(error, HandlerFailed)
    assert error.type == "DuplicateKey"
    assert await cluster.client(Log)("a").read() == ["one"]


async def test_a_durable_stream_streams(anywhere: Cluster) -> None:
    """A durable handler may be a stream: all its items come."""
    assert [item async for item in anywhere.client(Numbers)("a").numbers(600)] == list(range(600))
