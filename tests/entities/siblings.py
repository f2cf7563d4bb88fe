"""Entities that ask each other by the same id, and so within one shard."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime

from actorhub import Entity, Hub, Singleton, cron, current, handler
from tests.support.gates import gates

notes: defaultdict[str, list[str]] = defaultdict(list)
"""What the test's entities did, by id."""


class Order(Entity[int], name="order"):
    """Asks its sibling, which has the same id and so the same shard, once its gate is open."""

    async def place(self, sibling: str = "take") -> str:
        await gates[current().entity_id].pass_through()
        stock = current().client(Stock)(current().entity_id)
        match sibling:
            case "take":
                return await stock.take()
            case "store":
                return await stock.store()
            case "look":
                return await stock.look()
            case _:
                return ",".join([item async for item in stock.items()])

    @handler(durable=True)
    async def book(self) -> str:
        await gates[current().entity_id].pass_through()
        self.state += 1
        return await current().client(Stock)(current().entity_id).store()

    async def through(self, middle: str) -> str:
        """Ask an entity elsewhere, which asks this one's sibling."""
        await gates[current().entity_id].pass_through()
        return await current().client(Broker)(middle).fetch(current().entity_id)

    async def where(self) -> str:
        return current().runner.address

    async def note(self) -> None:
        """Tell the sibling something."""
        await current().tell(current().client(Stock)(current().entity_id).write("told"))

    async def ask(self) -> None:
        await current().client(Stock)(current().entity_id).write("asked")

    async def note_and_ask(self, other: str) -> None:
        """Have another one tell its sibling something, and then ask it."""
        await gates[current().entity_id].pass_through()
        await current().client(Order)(other).note()
        await current().client(Order)(other).ask()

    async def lead(self) -> str:
        await gates[current().entity_id].pass_through()
        return await current().singleton(Chief).decide()

    async def fill(self, other: str) -> None:
        """Change the sibling and another one, in memory and durably, by asks and tells: five times in all."""
        stock = current().client(Stock)
        await stock(current().entity_id).take()
        await stock(other).store()
        await current().tell(stock(current().entity_id).store())
        await stock(current().entity_id).store()
        await current().tell(stock(other).take())

    async def recurse(self, depth: int) -> int:
        if depth == 0:
            await gates[current().entity_id].pass_through()
            return 0
        return 1 + await current().client(Stock)(current().entity_id).recurse(depth - 1)

    async def rounds(self, count: int) -> int:
        """Ask the sibling again and again, which asks others in turn."""
        await gates[current().entity_id].pass_through()
        for _ in range(count):
            await current().client(Stock)(current().entity_id).take()
        return count


class Stock(Entity[int], name="stock"):
    """What orders ask."""

    async def on_deactivate(self) -> None:
        if (name := f"leaving {current().entity_id}") in gates:
            await gates[name].pass_through()

    async def take(self) -> str:
        self.state += 1
        return current().runner.address

    @handler(readonly=True)
    async def value(self) -> int:
        return self.state

    @handler(readonly=True)
    async def look(self) -> str:
        return current().runner.address

    @handler(durable=True)
    async def store(self) -> str:
        self.state += 1
        return current().runner.address

    async def items(self) -> AsyncIterator[str]:
        for number in range(3):
            self.state += 1
            await asyncio.sleep(0)
            yield f"{number}"

    async def hold(self) -> None:
        await gates[f"stock {current().entity_id}"].pass_through()

    async def busy(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return current().runner.address

    async def decided(self) -> str:
        notes["chain"] += current().chain
        return await current().singleton(Chief).decide()

    async def write(self, line: str) -> None:
        notes[current().entity_id].append(line)

    @handler(reentrant=True)
    async def recurse(self, depth: int) -> int:
        return 1 + await current().client(Again)(current().entity_id).recurse(depth - 1)


class Again(Entity, name="again"):
    @handler(reentrant=True)
    async def recurse(self, depth: int) -> int:
        if depth <= 0:
            await gates[current().entity_id].pass_through()
            return 0
        return 1 + await current().client(Stock)(current().entity_id).recurse(depth - 1)


class Broker(Entity, name="broker"):
    """Elsewhere."""

    async def where(self) -> str:
        return current().runner.address

    async def fetch(self, entity_id: str) -> str:
        return await current().client(Stock)(entity_id).take()

    async def hold_then_fetch(self, entity_id: str) -> str:
        await gates[f"broker {current().entity_id}"].pass_through()
        return await current().client(Stock)(entity_id).take()

    async def pester(self, entity_id: str, stop: str) -> int:
        """Ask one entity over and over."""
        count = 0
        while not notes[stop]:
            await current().client(Stock)(entity_id).busy(0.002)
            count += 1
        return count


class Chief(Singleton[int], name="chief"):
    async def run(self) -> None:
        await asyncio.Event().wait()

    async def decide(self) -> str:
        self.state += 1
        return "decided"

    @cron("* * * * *", overlap="allow")
    async def check(self, at: datetime) -> None:
        """Lend the turn while it waits, so that its calls may come back."""
        if "check" in gates:
            await gates["check"].pass_through()
            notes["check"].append(await current().client(Stock)("chief").decided())


hub = Hub()
hub.register(Order)
hub.register(Stock)
hub.register(Again)
hub.register(Broker)
hub.register(Chief)
