"""Entities for the tests of steps, waits and sleeps: each test says what their handlers do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from actorhub import Cluster, Entity, EntityError, Hub, Retry, Singleton, current, handler
from actorhub.storage.checkpoint_ports import BODY, Saved, Scope
from actorhub.testing import MemoryCluster
from tests.support.gates import gates

SOON = Retry(attempts=3, initial=timedelta(milliseconds=10))
AT = datetime(2026, 11, 27, 12, 30, 15, 250_000, tzinfo=UTC)

Anything: TypeAlias = Any
"""What a test's functions return."""
Doing: TypeAlias = Callable[[Any], Awaitable[Any]]

doing: dict[str, Doing] = {}
"""What an entity's handlers do, by id: a test puts it there. They get the entity."""


class Receipt(msgspec.Struct, frozen=True):
    number: int
    at: datetime


class Declined(EntityError):
    why: str


async def do(entity: object) -> Anything:
    """Do what the test says."""
    gates[current().entity_id].log.append(f"run {current().attempt}")
    return await doing[current().entity_id](entity)


class Clerk(Entity[list[str]]):
    """Works in steps."""

    @handler(durable=True, retry=SOON)
    async def work(self) -> Anything:
        return await do(self)

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=10)), timeout=timedelta(seconds=0.15))
    async def work_in_time(self) -> Anything:
        return await do(self)

    @handler(durable=True, retry=SOON)
    async def note(self, text: str) -> None:
        self.state.append(text)

    @handler(durable=True)
    async def write(self, number: int) -> Receipt:
        self.state.append(f"receipt {number}")
        return Receipt(number, AT)

    async def notes(self) -> list[str]:
        return self.state

    async def work_now(self) -> Anything:
        return await do(self)

    @handler(readonly=True)
    async def look(self) -> Anything:
        return await do(self)

    async def stream(self) -> AsyncIterator[int]:
        await do(self)
        yield 1

    @handler(durable=True)
    async def durable_stream(self) -> AsyncIterator[int]:
        await do(self)
        yield 1


class Opener(Entity):
    """Works in its hook."""

    async def on_activate(self) -> None:
        await do(self)

    async def ping(self) -> None: ...


class Boss(Singleton[list[str]], name="boss"):
    """Works in steps of its `run`, if a test says so."""

    async def run(self) -> None:
        if "boss" in doing:
            await do(self)

    async def states(self) -> list[str]:
        return self.state


hub = Hub()
hub.register(Clerk)
hub.register(Opener)
hub.register(Boss)


def note(count: str = "a") -> int:
    """A step's function: leave a trace, return how many there are."""
    gates[count].entered += 1
    return gates[count].entered


async def tell_note(to: str, text: str) -> str:
    """A step's function: have a clerk note something."""
    note(to)
    await current().tell(current().client(Clerk)(to).note(text))
    return text


def saved(memory: MemoryCluster, message_id: int, entity_id: str = "a") -> Saved:
    """Return what the store has of a message's steps."""
    return memory.store.checkpoints.load(Scope("clerk", entity_id, message_id))


def body_saved(memory: MemoryCluster) -> Saved:
    """Return what the store has of the singleton's steps."""
    return memory.store.checkpoints.load(Scope("boss", "boss", BODY))


def owner(memory: MemoryCluster, cluster: Cluster, entity: type[Any] = Clerk, entity_id: str = "a") -> Cluster:
    """Return the runner that owns an id."""
    found = memory.owner_of(cluster.shard_of(entity, entity_id))
    assert found is not None
    return found


def take_by_force(memory: MemoryCluster, cluster: Cluster, entity: type[Any] = Clerk, entity_id: str = "a") -> None:
    """Have somebody else own an id's shard, without its owner's knowledge."""
    shard = cluster.shard_of(entity, entity_id)
    other = next(runner for runner in memory.runners if runner is not owner(memory, cluster, entity, entity_id))
    assert other.runner is not None
    memory.store.take([shard], other.runner)


async def noted(cluster: Cluster, count: int, entity_id: str = "b") -> list[str]:
    """Return a clerk's notes once there are so many, and a moment later, when one too many would be there, too."""
    async with asyncio.timeout(10):
        while len(await cluster.client(Clerk)(entity_id).notes()) < count:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)
    return await cluster.client(Clerk)(entity_id).notes()
