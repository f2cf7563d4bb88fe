"""Short stories of durable messages, each on the ground where one kind of defect would show."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeAlias

from tests.faults.durable.history import Book
from tests.faults.durable.hub import POISON_RUNS
from tests.faults.durable.memory import DurableMemory, briefly, durable_memory, poison_that_waits

Scenario: TypeAlias = Callable[[], Awaitable[Book]]


async def one_key_from_several_callers() -> Book:
    """Callers with one key, at the same time and late."""
    async with durable_memory() as world:
        clients = world.clients
        order = clients.order("ann", "e0", holds_ms=(20,))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(clients.ask("e0", order, key="k"))
            tasks.create_task(clients.tell("e0", order, key="k"))
        await clients.ask("e0", order, key="k")
        return await _ended(world)


async def an_answer_that_is_lost() -> Book:
    """A caller whose link broke while its message was being done asks again."""
    async with durable_memory() as world:
        clients = world.clients
        order = clients.order("ann", "e0")
        runner = world.memory.name_of(world.owner("e0"))
        world.memory.network.lose_next(runner, world.memory.name_of(world.client))
        await clients.ask("e0", order, timeout=3.0)
        return await _ended(world)


async def a_runner_that_leaves() -> Book:
    """A runner that leaves while a handler runs and others wait."""
    async with durable_memory(2) as world:
        clients = world.clients
        async with asyncio.TaskGroup() as tasks:
            first = clients.order("ann", "e0", holds_ms=(250,))
            tasks.create_task(clients.ask("e0", first, timeout=5.0))
            await world.ran(first.content)
            for _ in range(3):
                await clients.tell("e0", clients.order("ann", "e0"))
            await world.memory.stop(world.owner("e0"))
        return await _ended(world, is_calm=True)


async def a_runner_that_dies_with_a_backlog() -> Book:
    """A runner that dies while a handler runs and others wait."""
    async with durable_memory(2) as world:
        clients = world.clients
        first = clients.order("ann", "e0", holds_ms=(10_000,))
        await clients.tell("e0", first)
        await world.ran(first.content)
        for _ in range(5):
            await clients.tell("e0", clients.order("ann", "e0"))
        await world.memory.kill(world.owner("e0"))
        return await _ended(world)


async def a_message_that_kills_its_runner() -> Book:
    """A poisonous message, killing one runner after the other, and its neighbours."""
    async with poison_that_waits(), durable_memory(POISON_RUNS + 2) as world:
        clients = world.clients
        poison = clients.order("ann", "e0")
        told = await clients.tell("e0", poison, "poison")
        told.attempts = POISON_RUNS
        await clients.tell("e0", clients.order("ann", "e0"))
        for deaths in range(1, POISON_RUNS + 2):
            if not await world.ran_or_settled(poison.content, deaths):
                break
            await world.memory.kill(world.owner("e0"))
        return await _ended(world)


async def a_handler_that_refuses() -> Book:
    """A handler that changes the state, tells another entity, then raises; then one that does not raise."""
    async with durable_memory() as world:
        clients = world.clients
        await clients.ask("e0", clients.order("ann", "e0"), timeout=3.0)
        await clients.ask("e0", clients.order("ann", "e0", target="e1"), "refuse", timeout=1.0)
        await clients.ask("e0", clients.order("ann", "e0"), timeout=1.0)
        await briefly()
        return await _ended(world)


async def messages_for_later() -> Book:
    """Messages with a due time, near and far."""
    async with durable_memory() as world:
        clients = world.clients
        await clients.tell("e0", clients.order("ann", "e0"), at=time.time() + 0.4)
        await clients.tell("e1", clients.order("ann", "e1"), delay=0.2)
        return await _ended(world)


async def a_message_that_is_cancelled() -> Book:
    """A message that waits in its mailbox, and one that is not due, are cancelled."""
    async with durable_memory() as world:
        clients = world.clients
        first = clients.order("ann", "e0", holds_ms=(100,))
        await clients.tell("e0", first)
        await world.ran(first.content)
        waiting = await clients.tell("e0", clients.order("ann", "e0"))
        later = await clients.tell("e1", clients.order("ann", "e1"), delay=0.3)
        await clients.cancel(waiting)
        await clients.cancel(later)
        assert waiting.cancelled
        assert later.cancelled
        return await _ended(world)


async def a_key_whose_message_was_cancelled() -> Book:
    """A keyed message is cancelled, and another one is sent with its key."""
    async with durable_memory() as world:
        clients = world.clients
        first = await clients.tell("e0", clients.order("ann", "e0"), key="k", delay=60.0)
        await clients.cancel(first)
        assert first.cancelled
        await clients.ask("e0", clients.order("ann", "e0"), key="k", timeout=15.0)
        return await _ended(world)


async def _ended(world: DurableMemory, *, is_calm: bool = False) -> Book:
    await world.settled()
    await world.clients.all_replies(timedelta(seconds=0.2))
    return world.book(is_calm=is_calm)
