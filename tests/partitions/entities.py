"""What the runners of these tests host, and every kind of call that a program can make of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from actorhub import CallTimeout, Cluster, Entity, EntityError, Hub, MessageCancelled, MessageTooLarge, current, handler
from tests.support.gates import failure, gates, soon


class Refused(EntityError):
    why: str


class Desk(Entity[list[int]]):
    """Notes what it is told."""

    async def note(self, number: int) -> int:
        self.state.append(number)
        return len(self.state)

    async def notes(self) -> list[int]:
        return self.state

    async def where(self) -> str:
        return current().runner.address

    async def refuse(self) -> None:
        raise Refused(why="closed")

    async def hold(self) -> int:
        await gates[current().entity_id].pass_through()
        return 1

    async def time_left(self) -> float:
        found = current().deadline
        assert found is not None
        return (found - datetime.now(UTC)).total_seconds()

    async def length(self, text: str) -> int:
        return len(text)

    async def reversed(self, text: str) -> str:
        return text[::-1]

    async def count(self, until: int) -> AsyncIterator[int]:
        for number in range(until):
            yield number

    async def forward(self, entity_id: str, number: int) -> int:
        return await current().client(Desk)(entity_id).note(number)

    async def pass_on(self, entity_id: str, number: int) -> None:
        await current().tell(current().client(Ledger)(entity_id).enter(number))


class Ledger(Entity[list[int]]):
    """Notes what it is told, durably."""

    @handler(durable=True)
    async def enter(self, number: int) -> int:
        self.state.append(number)
        return len(self.state)

    async def entries(self) -> list[int]:
        return self.state

    @handler(durable=True)
    async def hold(self) -> int:
        await gates[current().entity_id].pass_through()
        return 1

    @handler(durable=True)
    async def count(self, until: int) -> AsyncIterator[int]:
        for number in range(until):
            yield number

    @handler(durable=True)
    async def approve(self) -> str:
        approval = current().deferred("approval", str)
        tokens[current().entity_id] = approval.token
        return await approval.wait()

    @handler(durable=True)
    async def tell_on(self, entity_id: str, number: int) -> None:
        await current().tell(current().client(Ledger)(entity_id).enter(number))


tokens: dict[str, str] = {}
hub = Hub()
hub.register(Desk)
hub.register(Ledger)

Kind: TypeAlias = Callable[[Cluster, str, str], Awaitable[Any]]
KINDS: Final[dict[str, Kind]] = {}
"""By name: makes such a call from a process of an entity on a runner that it is cut off from, and checks what comes of
it. The second id is that of another entity, on the runner that both reach."""


def kind(name: str) -> Callable[[Kind], Kind]:
    """Register a kind of call."""

    def register(make: Kind) -> Kind:
        KINDS[name] = make
        return make

    return register


@kind("ask")
async def _(caller: Cluster, far: str, near: str) -> None:
    assert await caller.client(Desk)(far).note(7) == 1
    assert await caller.client(Desk)(far).notes() == [7]


@kind("ask that fails")
async def _(caller: Cluster, far: str, near: str) -> None:
    error = await failure(caller.client(Desk)(far).refuse())
    assert isinstance(error, Refused)
    assert error.why == "closed"


@kind("large ask")
async def _(caller: Cluster, far: str, near: str) -> None:
    # As large as a message may be, both ways: it still fits with what surrounds it.
    text = "x" * ((4 << 20) - 20)
    desk = caller.client(Desk).options(headers={"h": "y" * 60_000})(far)
    assert len(await desk.reversed(text)) == len(text)


@kind("too large ask")
async def _(caller: Cluster, far: str, near: str) -> None:
    error = await failure(caller.client(Desk)(far).length("x" * (5 << 20)))
    assert isinstance(error, MessageTooLarge)
    assert await caller.client(Desk)(far).length("x") == 1


@kind("many asks at once")
async def _(caller: Cluster, far: str, near: str) -> None:
    text = "x" * 100_000
    asked = [soon(caller.client(Desk)(far).length(text)) for _ in range(300)]
    assert [await one for one in asked] == [len(text)] * 300


@kind("deadline")
async def _(caller: Cluster, far: str, near: str) -> None:
    assert 3 < await caller.client(Desk).options(timeout=timedelta(seconds=5))(far).time_left() <= 5


@kind("tell")
async def _(caller: Cluster, far: str, near: str) -> None:
    for number in range(20):
        await caller.tell(caller.client(Desk)(far).note(number))
    assert await caller.client(Desk)(far).notes() == list(range(20))


@kind("durable ask")
async def _(caller: Cluster, far: str, near: str) -> None:
    assert await caller.client(Ledger)(far).enter(7) == 1


@kind("durable tell and reply")
async def _(caller: Cluster, far: str, near: str) -> None:
    message_id = await caller.tell(caller.client(Ledger)(far).enter(7))
    assert await caller.reply(message_id) == 1


@kind("durable tell by key")
async def _(caller: Cluster, far: str, near: str) -> None:
    first, second = [await caller.tell(caller.client(Ledger)(far).enter(7), key="k") for _ in range(2)]
    assert first == second
    assert await caller.reply(first) == 1


@kind("durable tell for later")
async def _(caller: Cluster, far: str, near: str) -> None:
    message_id = await caller.tell(caller.client(Ledger)(far).enter(7), delay=timedelta(milliseconds=100))
    assert await caller.reply(message_id) == 1


@kind("durable tell from a run")
async def _(caller: Cluster, far: str, near: str) -> None:
    await caller.client(Ledger)(near).tell_on(far, 7)
    async with asyncio.timeout(2):  # Told of it, and not by its next scan of the store.
        while await caller.client(Ledger)(far).entries() != [7]:
            await asyncio.sleep(0.01)


@kind("tell from a volatile run")
async def _(caller: Cluster, far: str, near: str) -> None:
    await caller.client(Desk)(near).pass_on(far, 7)
    async with asyncio.timeout(2):
        while await caller.client(Ledger)(far).entries() != [7]:
            await asyncio.sleep(0.01)


@kind("ask from a handler")
async def _(caller: Cluster, far: str, near: str) -> None:
    assert await caller.client(Desk)(near).forward(far, 7) == 1


@kind("stream")
async def _(caller: Cluster, far: str, near: str) -> None:
    assert [item async for item in caller.client(Desk)(far).count(1000)] == list(range(1000))


@kind("durable stream")
async def _(caller: Cluster, far: str, near: str) -> None:
    assert [item async for item in caller.client(Ledger)(far).count(1000)] == list(range(1000))


@kind("broadcast")
async def _(caller: Cluster, far: str, near: str) -> None:
    for entity_id in (far, near):
        await caller.client(Desk)(entity_id).notes()
    assert await caller.tell(caller.client(Desk).active().note(7)) == 2
    assert await caller.client(Desk)(far).notes() == [7]


@kind("cancelled ask")
async def _(caller: Cluster, far: str, near: str) -> None:
    asked = soon(caller.client(Desk)(far).hold())
    await gates[far].came()
    asked.cancel()
    async with asyncio.timeout(5):
        while gates[far].left != ["cancelled"]:
            await asyncio.sleep(0.01)


@kind("cancelled message")
async def _(caller: Cluster, far: str, near: str) -> None:
    message_id = await caller.tell(caller.client(Ledger)(far).hold())
    await gates[far].came()
    assert await caller.cancel(message_id)
    assert isinstance(await failure(caller.reply(message_id)), MessageCancelled)
    assert gates[far].left == ["cancelled"]


@kind("timeout")
async def _(caller: Cluster, far: str, near: str) -> None:
    hurried = caller.client(Desk).options(timeout=timedelta(milliseconds=200))
    error = await failure(hurried(far).hold())
    assert isinstance(error, CallTimeout)
    assert error.possibly_executed
    async with asyncio.timeout(5):
        while gates[far].left != ["cancelled"]:
            await asyncio.sleep(0.01)


@kind("timeout in the mailbox")
async def _(caller: Cluster, far: str, near: str) -> None:
    held = soon(caller.client(Desk)(far).hold())
    await gates[far].came()
    error = await failure(caller.client(Desk).options(timeout=timedelta(milliseconds=200))(far).note(1))
    assert isinstance(error, CallTimeout)
    assert not error.possibly_executed
    gates[far].open()
    assert await held == 1
    assert await caller.client(Desk)(far).notes() == []


@kind("deferred value")
async def _(caller: Cluster, far: str, near: str) -> None:
    asked = soon(caller.client(Ledger)(far).approve())
    async with asyncio.timeout(5):
        while far not in tokens:
            await asyncio.sleep(0.01)
    assert await caller.complete(tokens.pop(far), "yes")
    async with asyncio.timeout(2):
        assert await asked == "yes"


@kind("poll")
async def _(caller: Cluster, far: str, near: str) -> None:
    await caller.poll_storage()
