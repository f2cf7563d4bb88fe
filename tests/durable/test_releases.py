"""Callers and runners of two releases that declare a handler differently: the runner's declaration decides."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

from actorhub import Entity, Hub, Singleton, current, handler
from actorhub.core.errors import MalformedMessage
from actorhub.storage.message_ports import MessageFilter
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Order


class Volatile(Entity[list[str]], name="till"):
    """The release in which nothing is durable."""

    async def pay(self, order: Order) -> int:
        self.state.append(order.order_id)
        return len(self.state)

    async def note(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(readonly=True)
    async def seen(self) -> list[str]:
        return self.state

    @handler(readonly=True)
    async def peek(self) -> int:
        return len(self.state)

    @handler(reentrant=True)
    async def again(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    async def numbers(self, until: int) -> AsyncIterator[int]:
        for number in range(until):
            yield number


class Durable(Entity[list[str]], name="till"):
    """The release in which everything is durable that can be."""

    @handler(durable=True)
    async def pay(self, order: Order) -> int:
        self.state.append(f"{order.order_id}:{current().key}")
        return len(self.state)

    @handler(durable=True)
    async def note(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(readonly=True)
    async def seen(self) -> list[str]:
        return self.state

    @handler(durable=True)
    async def peek(self) -> int:
        return len(self.state)

    @handler(durable=True)
    async def again(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(durable=True)
    async def numbers(self, until: int) -> AsyncIterator[int]:
        for number in range(until):
            yield number


def hub_of(entity: type[Entity[list[str]]]) -> Hub:
    hub = Hub()
    hub.register(entity)
    return hub


volatile, durable = hub_of(Volatile), hub_of(Durable)
hub = volatile
release_here: ContextVar[type[Any]] = ContextVar("release_here")


async def test_calls_that_their_callers_do_not_store_are_stored(memory: MemoryCluster) -> None:
    """A handler that has become durable stores what older callers send, under the key that the arguments bring."""
    await memory.start_runner(hub=durable)
    caller = await memory.client(hub=volatile)
    till = caller.client(Volatile)("a")
    assert [await till.pay(Order("o-1")) for _ in range(3)] == [1, 1, 1]
    told = await caller.tell(till.note("told"))
    assert await caller.reply(told) == 2
    assert await till.seen() == ["o-1:o-1", "told"]
    assert [item async for item in till.numbers(3)] == [0, 1, 2]
    rows = memory.store.messages.messages(MessageFilter())
    assert sorted((row.handler, row.key) for row in rows) == [("note", None), ("pay", "o-1")]


async def test_calls_that_their_callers_store_run_as_stored_messages(memory: MemoryCluster) -> None:
    """A handler that is no longer durable runs what newer or older callers want stored once, and settles it."""
    await memory.start_runner(hub=volatile)
    caller = await memory.client(hub=durable)
    till = caller.client(Durable)("a")
    assert [await till.pay(Order("o-1")) for _ in range(3)] == [1, 1, 1]
    told = await caller.tell(till.note("told"))
    assert [await caller.reply(told) for _ in range(2)] == [2, 2]
    assert await caller.tell(till.note("again"), key="k") == await caller.tell(till.note("again"), key="k")
    assert await till.peek() == 3
    assert await till.again("last") == 4
    assert await till.seen() == ["o-1", "told", "again", "last"]


async def test_messages_of_an_earlier_release_run_although_their_handlers_are_no_longer_durable(
    memory: MemoryCluster,
) -> None:
    """What was stored for later, or not run yet, runs once at a release whose handlers are volatile."""
    first = await memory.start_runner(hub=durable)
    caller = await memory.client(hub=durable)
    till = caller.client(Durable)("a")
    later = await caller.tell(till.note("later"), delay=timedelta(seconds=0.5))
    peeked = await caller.tell(till.peek(), delay=timedelta(seconds=0.5))
    again = await caller.tell(till.again("again"), delay=timedelta(seconds=0.5))
    await memory.kill(first)
    await memory.start_runner(hub=volatile)
    async with asyncio.timeout(10):
        replies = [await caller.reply(told) for told in (later, peeked, again)]
    assert sorted(replies) == [1, 1, 2]
    assert await till.seen() == ["later", "again"]


async def test_a_broadcast_of_a_handler_that_has_become_durable_is_refused(memory: MemoryCluster) -> None:
    """Nothing runs, the caller learns why, and the entities go on."""
    await memory.start_runner(hub=durable)
    caller = await memory.client(hub=volatile)
    tills = caller.client(Volatile)
    for number in range(20):
        await tills(f"e{number}").note("first")
    with pytest.raises(MalformedMessage, match="durable in the release of this runner") as refusal:
        await caller.tell(tills.active().note("to all"))
    assert not refusal.value.possibly_executed
    assert [await tills(f"e{number}").note("second") for number in range(20)] == [2] * 20


async def test_a_broadcast_that_one_release_refuses_says_that_it_may_have_run(memory: MemoryCluster) -> None:
    """Where other runners took it, the refusal does not promise that nothing ran."""
    await memory.start_runner(hub=volatile)
    await memory.start_runner(hub=durable)
    await memory.settled()
    caller = await memory.client(hub=volatile)
    tills = caller.client(Volatile)
    for number in range(40):
        await tills(f"e{number}").note("first")
    with pytest.raises(MalformedMessage) as refusal:
        await caller.tell(tills.active().note("to all"))
    assert refusal.value.possibly_executed


@pytest.mark.parametrize(("runners", "callers"), [(durable, volatile), (volatile, durable)])
async def test_arguments_that_do_not_fit_the_runner_s_release_are_refused(
    memory: MemoryCluster, runners: Hub, callers: Hub
) -> None:
    """The caller gets the typed error, and no handler ran."""

    class Misfit(Entity[list[str]], name="till"):
        @handler(durable=callers is durable)
        async def pay(self, order: int) -> int:
            return order

    await memory.start_runner(hub=runners)
    caller = await memory.client(hub=hub_of(Misfit))
    with pytest.raises(MalformedMessage, match="order") as refusal:
        await caller.client(Misfit)("a").pay(1)
    assert not refusal.value.possibly_executed


class Asking(Entity[int], name="asking", shard_group="callers"):
    """Calls a till from handlers, a durable one and its steps among them, as the release of its runner declares it."""

    async def tell(self, till: str, text: str) -> int:
        self.state += 1
        return await current().tell(_till(till).note(text))

    async def ask(self, till: str, text: str) -> int:
        return await _till(till).note(text)

    @handler(durable=True)
    async def ask_in_a_step(self, till: str, text: str) -> int:
        return await current().step("note", partial(self._note, till, text))

    async def _note(self, till: str, text: str) -> int:
        return await _till(till).note(text)


class Led(Singleton[int], name="led", shard_group="callers"):
    """Calls a till from its main loop."""

    async def run(self) -> None:
        await current().step("note", self._note)
        await asyncio.Event().wait()

    async def _note(self) -> int:
        return await _till("led").note("led")


def _till(entity_id: str) -> Volatile:
    """Return a till as the release of the caller's runner declares it; to type checkers both look alike."""
    declared: type[Volatile] = release_here.get()
    return current().client(declared)(entity_id)


@pytest.mark.parametrize(("callers", "owners"), [(Volatile, Durable), (Durable, Volatile)])
async def test_entities_and_singletons_call_those_of_another_release(
    memory: MemoryCluster, callers: type[Any], owners: type[Any]
) -> None:
    """Their asks, tells, steps and main loops are served as the release of the called entity's runner declares it."""
    release_here.set(callers)
    await memory.start_runner(hub=hub_of(owners), groups=("default",))
    here = hub_of(callers)
    here.register(Asking)
    here.register(Led)
    runner = await memory.start_runner(hub=here, groups=("callers",))
    await memory.settled()
    asking = runner.client(Asking)("x")
    await asking.tell("a", "told")
    await until(lambda: _lines(memory, "a") == ["told"])
    assert await asking.ask("a", "asked") == 2
    assert await asking.ask_in_a_step("a", "step") == 3
    assert _lines(memory, "a") == ["told", "asked", "step"]
    await until(lambda: _lines(memory, "led") == ["led"])


def _lines(memory: MemoryCluster, entity_id: str) -> list[str]:
    stored = memory.stored("till", entity_id)
    return [] if stored is None else msgspec.msgpack.decode(stored.data, type=list[str])


async def test_a_durable_stream_does_not_go_on_where_it_is_not_repeatable(memory: MemoryCluster) -> None:
    """Its consumer gets an error that says that it has run, not its items once more."""
    first = await memory.start_runner(hub=durable)
    caller = await memory.client(hub=durable)
    numbers = caller.client(Durable)("a").numbers(100_000)
    assert [await anext(numbers) for _ in range(3)] == [0, 1, 2]
    await memory.kill(first)
    await memory.start_runner(hub=volatile)
    with pytest.raises(MalformedMessage, match="not durable") as refusal:
        async for _ in numbers:
            pass
    assert refusal.value.possibly_executed
