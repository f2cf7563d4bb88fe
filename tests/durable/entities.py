"""Entities for the tests of durable messages; gates hold their handlers where a test says so."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from actorhub import Cluster, Entity, EntityError, Hub, Retry, current, handler
from actorhub.testing import MemoryCluster
from tests.support.gates import gates

SOON = Retry(attempts=3, initial=timedelta(milliseconds=10))
ONCE = Retry(attempts=1)


class Refused(EntityError):
    why: str


class Busy(EntityError):
    seen: int


class Order(msgspec.Struct):
    """A payload that brings its key along."""

    order_id: str
    amount: int = 1

    def primary_key(self) -> str:
        """Its idempotency key."""
        return self.order_id


class Log(Entity[list[str]]):
    """Keeps what it was told, in the order of its runs."""

    @handler(durable=True, retry=SOON)
    async def add(self, text: str) -> int:
        gates[current().entity_id].log.append(text)
        self.state.append(text)
        return len(self.state)

    async def add_now(self, text: str) -> int:
        gates[current().entity_id].log.append(text)
        self.state.append(text)
        return len(self.state)

    async def read(self) -> list[str]:
        return self.state

    @handler(durable=True, retry=SOON)
    async def hold(self, text: str = "held") -> int:
        await gates[current().entity_id].pass_through()
        self.state.append(text)
        return len(self.state)

    @handler(durable=True)
    async def order(self, order: Order) -> int:
        self.state.append(f"{order.order_id}:{current().key}")
        return len(self.state)

    @handler(durable=True)
    async def count(self, text: str) -> int:
        self.state.append(f"count {text}")
        return len(self.state)

    @handler(durable=True, retention=timedelta(milliseconds=50))
    async def forgetful(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(durable=True, retry=SOON)
    async def crash(self, times: int) -> int:
        self.state.append("crashed")
        gates[current().entity_id].log.append(f"run {current().attempt}")
        if current().attempt <= times:
            raise ValueError("no luck")
        return current().attempt

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(seconds=0.3)))
    async def crash_slowly(self) -> int:
        return await self._crash_first()

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(hours=1), maximum=timedelta(hours=1)))
    async def crash_for_an_hour(self) -> int:
        return await self._crash_first()

    async def _crash_first(self) -> int:
        gate = gates[current().entity_id]
        gate.entered += 1
        if gate.entered == 1:
            raise ValueError("no luck")
        return current().attempt

    @handler(durable=True, retry=SOON)
    async def refuse(self, why: str) -> int:
        self.state.append("refused")
        gates[current().entity_id].log.append("refused")
        raise Refused(why=why)

    @handler(durable=True, retry=Retry(attempts=3, initial=timedelta(milliseconds=10), on=(Busy,)))
    async def busy(self, times: int) -> int:
        if current().attempt <= times:
            raise Busy(seen=current().attempt)
        return current().attempt

    @handler(durable=True, retry=SOON, timeout=timedelta(milliseconds=30))
    async def hang(self, times: int) -> int:
        if current().attempt <= times:
            await gates["never"].pass_through()
        return current().attempt

    @handler(durable=True, retry=SOON)
    async def unencodable(self) -> int:
        self.state.append("unencodable")
        return object()  # type: ignore[return-value]

    @handler(durable=True, retry=ONCE)
    async def at_most_once(self, text: str) -> int:
        self.state.append(text)
        return current().attempt


class Sender(Entity[int]):
    """Tells logs what to keep."""

    @handler(durable=True, retry=SOON)
    async def send(self, to: str, text: str) -> int:
        self.state += 1
        return await current().tell(current().client(Log)(to).add(text))

    async def send_number(self, to: str, number: int) -> int:
        return await current().tell(current().client(Narrow)(to).put(number))

    @handler(durable=True, retry=SOON)
    async def send_and_hold(self, to: str, text: str) -> int:
        self.state += 1
        message_id = await current().tell(current().client(Log)(to).add(text))
        await gates[current().entity_id].pass_through()
        return message_id

    @handler(durable=True, retry=SOON)
    async def send_and_crash(self, to: str, text: str) -> int:
        self.state += 1
        await current().tell(current().client(Log)(to).add(f"{text} {current().attempt}"))
        if current().attempt < 2:
            raise ValueError("nothing leaves")
        return self.state

    @handler(durable=True, retry=SOON)
    async def send_and_refuse(self, to: str, text: str) -> int:
        self.state += 1
        await current().tell(current().client(Log)(to).add(text))
        raise Refused(why="nothing leaves")

    async def send_now(self, to: str, text: str, fail: bool = False) -> int:
        self.state += 1
        message_id = await current().tell(current().client(Log)(to).add(text))
        if fail:
            raise ValueError("nothing leaves")
        return message_id

    @handler(readonly=True)
    async def send_reading(self, to: str, text: str) -> int:
        return await current().tell(current().client(Log)(to).add(text))

    @handler(durable=True, retry=SOON)
    async def send_later(
        self, to: str, text: str, at: datetime | None = None, seconds: float | None = None, key: str | None = None
    ) -> int:
        delay = None if seconds is None else timedelta(seconds=seconds)
        return await current().tell(current().client(Log)(to).add(text), deliver_at=at, delay=delay, key=key)

    async def stream(self, to: str, count: int) -> AsyncIterator[int]:
        for number in range(count):
            self.state += 1
            await current().tell(current().client(Log)(to).add(f"item {number}"))
            yield number

    async def sent(self) -> int:
        return self.state


class Hooked(Entity[int], max_idle=timedelta(milliseconds=50)):
    """Tells from its hooks."""

    async def on_activate(self) -> None:
        self.state += 1
        await current().tell(current().client(Log)(current().entity_id).add("activated"))

    async def on_deactivate(self) -> None:
        await current().tell(current().client(Log)(current().entity_id).add("deactivated"))

    async def ping(self) -> int:
        return self.state


class Slow(Entity, max_idle=timedelta(seconds=60)):
    """Takes its time to come and to go."""

    async def on_activate(self) -> None:
        await gates[f"{current().entity_id} comes"].pass_through()

    async def on_deactivate(self) -> None:
        await gates[f"{current().entity_id} goes"].pass_through()

    @handler(durable=True, retry=ONCE)
    async def attempt(self) -> int:
        return current().attempt


class Poisoned(Entity):
    """Cannot be made as often as its gate says."""

    async def on_activate(self) -> None:
        gate = gates[current().entity_id]
        gate.entered += 1
        if "well" not in gate.log:
            raise RuntimeError("it cannot be made")

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=10)))
    async def attempt(self) -> int:
        return current().attempt


class Narrow(Entity[list[int]], mailbox_capacity=2):
    """Has room for two messages."""

    @handler(durable=True, retry=SOON)
    async def put(self, number: int) -> int:
        gates[current().entity_id].log.append(str(number))
        self.state.append(number)
        return len(self.state)

    @handler(durable=True, retry=SOON)
    async def put_slowly(self, number: int) -> None:
        await asyncio.sleep(0.003)
        self.state.append(number)

    @handler(durable=True, retry=SOON)
    async def hold(self) -> None:
        await gates[current().entity_id].pass_through()

    async def read(self) -> list[int]:
        return self.state


class Numbers(Entity[int]):
    """Streams durably."""

    @handler(durable=True, retry=SOON)
    async def numbers(self, count: int, hold_at: int = -1) -> AsyncIterator[int]:
        for number in range(count):
            if number == hold_at:
                await gates[current().entity_id].pass_through()
            yield number


hub = Hub()
hub.register(Log)
hub.register(Sender)
hub.register(Hooked)
hub.register(Slow)
hub.register(Poisoned)
hub.register(Narrow)
hub.register(Numbers)


async def read(cluster: Cluster, entity_id: str, count: int, *, deadline: float = 5.0) -> list[str]:
    """Return what a log keeps once it keeps so much."""
    found: list[str] = []
    async with asyncio.timeout(deadline):
        while len(found := await cluster.client(Log)(entity_id).read()) < count:
            await asyncio.sleep(0.005)
    return found


def owner(memory: MemoryCluster, cluster: Cluster, entity: type[Entity[Any]], entity_id: str) -> Cluster:
    """Return the runner that owns an id."""
    found = memory.owner_of(cluster.shard_of(entity, entity_id))
    assert found is not None
    return found
