"""Idempotency keys: equal keys are one message, committed once and answered alike; another payload is an error."""

import asyncio
import re
from datetime import timedelta

import pytest

from actorhub import Cluster, DuplicateKey, HandlerFailed, MalformedMessage, MessageCancelled
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, Order, Refused, Sender, hub
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of

__all__ = ["hub"]


async def test_equal_keys_are_one_message(anywhere: Cluster) -> None:
    """A second tell returns the first one's id; the handler runs once."""
    log = anywhere.client(Log)("a")
    ids = [await anywhere.tell(log.add("one"), key="k") for _ in range(3)]
    assert len(set(ids)) == 1
    assert await anywhere.reply(ids[0]) == 1
    assert await anywhere.tell(log.add("one"), key="k") == ids[0]
    assert await log.read() == ["one"]


async def test_concurrent_callers_with_one_key_get_one_reply(anywhere: Cluster) -> None:
    """Asks and tells at once: one run, one id, one value for all of them."""
    keyed = anywhere.client(Log).options(key="k")("a")
    tells = [anywhere.tell(keyed.hold()) for _ in range(3)]
    asks = [keyed.hold() for _ in range(5)]
    waiting = soon(outcomes(*tells, *asks))
    await gates["a"].came()
    gates["a"].open()
    found = await waiting
    assert len(set(found[:3])) == 1
    assert found[3:] == [1] * 5
    assert gates["a"].entered == 1


async def test_a_late_caller_gets_the_stored_reply(anywhere: Cluster) -> None:
    """An ask after the end returns the value of then, whatever came in between."""
    log = anywhere.client(Log)
    assert await log.options(key="k")("a").add("one") == 1
    assert await log("a").add("two") == 2
    assert await log.options(key="k")("a").add("one") == 1
    assert await log("a").read() == ["one", "two"]


async def test_a_late_caller_gets_the_stored_error(anywhere: Cluster) -> None:
    """Domain errors are replies, and dead letters are answers, too."""
    keyed = anywhere.client(Log).options(key="k")("a")
    for _ in range(2):
        with pytest.raises(Refused, match="sold out"):
            await keyed.refuse("sold out")
        with pytest.raises(HandlerFailed, match="no luck"):
            await keyed.crash(9)
    assert gates["a"].log.count("refused") == 1
    assert gates["a"].log.count("run 1") == 1


async def test_another_payload_with_the_same_key_is_an_error(anywhere: Cluster) -> None:
    """DuplicateKey, which names the first one; nothing runs: while the first one waits, and after its end."""
    log = anywhere.client(Log)
    keyed = log.options(key="k")("a")
    held = soon(log.options(key="held")("a").hold("one"))
    await gates["a"].came()
    queued = await anywhere.tell(keyed.add("one"))
    for call in (keyed.add("two"), anywhere.tell(keyed.add("two")), log.options(key="held")("a").hold("two")):
        error = await failure(call)
        assert isinstance(error, DuplicateKey)
        assert not error.possibly_executed
        first = queued if "hold" not in error.message else r"\d{15,}"
        text = rf"message {first} has used (its key|the key '.*') before, with another payload"
        assert re.search(text, error.message)
    gates["a"].open()
    assert await held == 1
    assert await anywhere.reply(queued) == 2
    assert isinstance(await failure(keyed.add("two")), DuplicateKey)
    assert await log("a").read() == ["one", "one"]


async def test_keys_belong_to_one_handler_of_one_entity(anywhere: Cluster) -> None:
    """The same key elsewhere is another message."""
    log = anywhere.client(Log).options(key="k")
    assert await log("a").add("one") == 1
    assert await log("a").count("one") == 2
    assert await log("b").add("two") == 1


async def test_the_payload_brings_its_key(anywhere: Cluster) -> None:
    """primary_key() of an argument is the key; an explicit one wins, and handlers see which it is."""
    log = anywhere.client(Log)
    assert await log("a").order(Order("o-1")) == 1
    assert await log("a").order(Order("o-1")) == 1
    assert isinstance(await failure(log("a").order(Order("o-1", amount=2))), DuplicateKey)
    assert await log.options(key="mine")("a").order(Order("o-1", amount=2)) == 2
    told = await anywhere.tell(log.options(key="mine")("a").order(Order("o-1")), key="told")
    assert await anywhere.reply(told) == 3
    assert await log("a").read() == ["o-1:o-1", "o-1:mine", "o-1:told"]


async def test_volatile_handlers_have_no_keys(cluster: Cluster) -> None:
    """A key for one is a mistake, and the error says how to mend it."""
    log = cluster.client(Log)
    for call in (log.options(key="k")("a").add_now("one"), cluster.tell(log("a").add_now("one"), key="k")):
        error = await failure(call)
        assert isinstance(error, TypeError)
        assert "durable=True" in str(error)
    assert await log("a").read() == []


@pytest.mark.parametrize("key", ["", "a\nb", "a\x00b", "k" * 1025, 7])
async def test_a_key_that_is_none_is_refused(cluster: Cluster, key: str) -> None:
    """Empty, too long, with control characters, no string: MalformedMessage, nothing is stored."""
    assert isinstance(await failure(cluster.tell(cluster.client(Log)("a").add("one"), key=key)), MalformedMessage)
    assert await cluster.client(Log)("a").read() == []


async def test_long_and_foreign_keys_work(anywhere: Cluster) -> None:
    """1024 bytes, any script."""
    log = anywhere.client(Log)("a")
    for key in ("k" * 1024, "ключ 🔑", "' ; drop table message; --"):
        first = await anywhere.tell(log.add(key[:10]), key=key)
        assert await anywhere.tell(log.add(key[:10]), key=key) == first
    assert await log.add("end") == 4


async def test_a_key_is_free_again_after_its_retention(memory: MemoryCluster, cluster: Cluster) -> None:
    """Forgotten replies free their keys; until then the first reply counts."""
    keyed = cluster.client(Log).options(key="k")("a")
    assert await keyed.forgetful("one") == 1
    async with asyncio.timeout(5):
        while memory.store.messages.remove_expired(10) == 0:
            await asyncio.sleep(0.01)
    assert await keyed.forgetful("two") == 2


async def test_the_key_of_a_cancelled_message_is_free_again(anywhere: Cluster) -> None:
    """Whoever tells or asks with it afterwards sends a new message, which runs."""
    log = anywhere.client(Log)("a")
    told = await anywhere.tell(log.add("one"), key="k", delay=timedelta(hours=1))
    assert await anywhere.cancel(told)
    again = await anywhere.tell(log.add("another"), key="k")
    assert again != told
    assert await anywhere.reply(again) == 1
    assert isinstance(await failure(anywhere.reply(told)), MessageCancelled)
    assert await anywhere.client(Log).options(key="k")("a").add("another") == 1
    assert await log.read() == ["another"]


async def test_an_ask_that_joined_a_cancelled_message_is_not_sent_anew(memory: MemoryCluster) -> None:
    """Its link broke, so it is sent again after the cancellation, when the key is free."""
    runner = await memory.start_runner()
    client = await memory.client()
    log = client.client(Log).options(key="k")("a")
    told = await client.tell(log.hold("one"))
    await gates["a"].came()
    asked = soon(failure(log.hold("one")))
    await until(lambda: joined(runner, told))
    memory.cut(client, runner)
    assert await runner.cancel(told)
    memory.heal(client, runner)
    assert isinstance(await asked, MessageCancelled)
    again = soon(log.hold("one"))
    await gates["a"].came(2)
    gates["a"].open()
    assert await again == 1


def joined(runner: Cluster, message_id: int) -> bool:
    """Whether somebody waits for the reply to a message."""
    return any(each.message_id == message_id and each.waiters for each in host_of(runner).delivery.memory)


async def test_a_handler_tells_with_the_key_of_a_cancelled_message(cluster: Cluster) -> None:
    """What it tells is sent, not taken for the message that was cancelled."""
    log = cluster.client(Log)("a")
    assert await cluster.cancel(await cluster.tell(log.add("x"), key="k", delay=timedelta(hours=1)))
    told = await cluster.client(Sender)("s").send_later("a", "x", key="k")
    assert await cluster.reply(told) == 1


async def test_a_key_that_a_cancelled_message_still_has_is_freed(memory: MemoryCluster, cluster: Cluster) -> None:
    """As a runner of an earlier release leaves it: the next message with the key is stored nevertheless."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.add("one"), key="k", delay=timedelta(hours=1))
    keys = dict(memory.store.messages._keys)
    assert await cluster.cancel(told)
    memory.store.messages._keys.update(keys)
    assert await cluster.client(Log).options(key="k")("a").add("one") == 1
    assert await log.read() == ["one"]
