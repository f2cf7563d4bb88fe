"""Two releases whose classes differ share one stored state: neither destroys what only the other one knows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from actorhub import Entity, Hub, Singleton, current, handler
from actorhub.testing import MemoryCluster, until

T = TypeVar("T")


class Line(msgspec.Struct):
    sku: str
    count: int = 0


class PricedLine(msgspec.Struct):
    sku: str
    count: int = 0
    price: int = 0


class Box(msgspec.Struct, Generic[T]):
    lines: list[T] = []
    changes: int = 0


class Sum(msgspec.Struct):
    n: int = 0


class Renamed(msgspec.Struct):
    total: int = 0


class Cart(Entity[Box[Line]], name="cart"):
    """Knows nothing of prices."""

    async def on_activate(self) -> None:
        if self.state.changes == 5:
            self.state.changes = 6

    async def add(self) -> int:
        self.state.lines[0].count += 1
        return self.state.lines[0].count

    @handler(durable=True)
    async def add_durably(self) -> int:
        return await self.add()

    async def add_and_save(self) -> None:
        await self.add()
        await self.save()
        self.state.lines[0].count += 1

    async def add_and_fail(self) -> None:
        await self.add()
        self.state.lines = []
        raise ValueError("no")

    async def add_twice(self, times: int) -> AsyncIterator[int]:
        for _ in range(times):
            yield await self.add()

    @handler(reentrant=True)
    async def spoil(self) -> None:
        self.state.lines = []
        raise ValueError("no")

    async def call_back(self) -> int:
        await self.add()
        try:
            await current().client(Cart)(current().entity_id).spoil()
        except Exception:  # noqa: BLE001 - what it raises does not matter here
            return await self.add()
        raise AssertionError

    async def make_anew(self) -> None:
        self.state = Box(self.state.lines, self.state.changes + 1)


class PricedCart(Entity[Box[PricedLine]], name="cart"):
    """Knows them."""

    async def put(self, sku: str, price: int) -> None:
        self.state.lines.append(PricedLine(sku, price=price))

    @handler(readonly=True)
    async def read(self) -> list[PricedLine]:
        return self.state.lines


class Account(Entity[Sum], name="account"):
    @handler(durable=True)
    async def add(self, amount: int) -> int:
        self.state.n += amount
        return self.state.n


class RenamedAccount(Entity[Renamed], name="account"):
    @handler(durable=True)
    async def plus(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total


class Worker(Singleton[Sum], name="worker"):
    async def add(self, amount: int) -> int:
        self.state.n += amount
        return self.state.n


class RenamedWorker(Singleton[Renamed], name="worker"):
    """Saves from its main loop."""

    async def run(self) -> None:
        await self.save(Renamed(self.state.total + 1))
        await asyncio.Event().wait()

    async def plus(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total


def hub_of(*classes: type[Any]) -> Hub:
    made = Hub()
    for one in classes:
        made.register(one)
    return made


old, new = hub_of(Cart, Account, Worker), hub_of(PricedCart, RenamedAccount, RenamedWorker)
hub = old

CHANGES: dict[str, tuple[Callable[[Cart], Any], int]] = {
    "a handler": (lambda cart: cart.add(), 1),
    "a durable handler": (lambda cart: cart.add_durably(), 1),
    "a save within a handler": (lambda cart: cart.add_and_save(), 2),
    "a new state": (lambda cart: cart.make_anew(), 0),
    "a handler that calls itself back": (lambda cart: cart.call_back(), 2),
}


@pytest.mark.parametrize("way", CHANGES)
async def test_what_one_release_does_not_know_outlives_its_commits(memory: MemoryCluster, way: str) -> None:
    """The price of each line is there when the release that knows prices is back."""
    change, count = CHANGES[way]
    runner = await memory.start_runner(hub=new)
    await runner.client(PricedCart)("a").put("tea", 350)
    await runner.client(PricedCart)("a").put("salt", 90)
    await memory.stop(runner)
    runner = await memory.start_runner(hub=old)
    cart = runner.client(Cart)("a")
    for _ in range(2):
        with pytest.raises(Exception, match="no"):
            await cart.add_and_fail()
        await change(cart)
    assert [item async for item in cart.add_twice(2)] == [2 * count + 1, 2 * count + 2]
    await memory.stop(runner)
    runner = await memory.start_runner(hub=new)
    assert await runner.client(PricedCart)("a").read() == [
        PricedLine("tea", 2 * count + 2, 350),
        PricedLine("salt", 0, 90),
    ]


async def test_a_renamed_field_is_two_fields_that_both_last(memory: MemoryCluster) -> None:
    """A release that is taken back finds its field as it left it, and so does the next attempt."""
    for amount in (1, 2):
        runner = await memory.start_runner(hub=old)
        assert await runner.client(Account)("a").add(10) == 10 * amount
        assert await runner.singleton(Worker).add(10) == 10 * amount
        await memory.stop(runner)
        runner = await memory.start_runner(hub=new)
        assert await runner.client(RenamedAccount)("a").plus(1) == amount
        worker = runner.singleton(RenamedWorker)
        assert await worker.plus(1) in (2 * amount - 1, 2 * amount)
        await until(partial(stored_total, memory, 2 * amount))
        await memory.stop(runner)
    assert stored(memory, "account", "a") == {"n": 20, "total": 2}
    assert stored(memory, "worker", "worker") == {"n": 20, "total": 4}


async def test_a_commit_that_is_refused_leaves_what_is_stored(memory: MemoryCluster) -> None:
    """The entity is built again, with all that is there."""
    runner = await memory.start_runner(hub=new)
    await runner.client(PricedCart)("a").put("tea", 350)
    await memory.stop(runner)
    runner = await memory.start_runner(hub=old)
    cart = runner.client(Cart)("a")
    assert await cart.add() == 1
    kept = memory.stored("cart", "a")
    assert kept is not None
    memory.overwrite("cart", "a", msgspec.structs.replace(kept, version=kept.version + 1))
    with pytest.raises(Exception, match="version"):
        await cart.add()
    assert await cart.add() == 2
    assert stored(memory, "cart", "a")["lines"] == [{"sku": "tea", "count": 2, "price": 350}]


async def test_unknown_fields_are_named_in_the_log_once(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever runs two releases can see it."""
    runner = await memory.start_runner(hub=new)
    for entity_id in "abc":
        await runner.client(PricedCart)(entity_id).put("tea", 350)
    await memory.stop(runner)
    runner = await memory.start_runner(hub=old)
    with caplog.at_level("INFO", "actorhub.activation"):
        for entity_id in "abc":
            await runner.client(Cart)(entity_id).add()
    lines = [
        record.getMessage()
        for record in caplog.records
        if "cart/a: its stored state has fields that" in record.getMessage()
    ]
    assert len(lines) == 1
    assert "lines[0].price" in lines[0]


def stored_total(memory: MemoryCluster, total: int) -> bool:
    return bool(stored(memory, "worker", "worker")["total"] == total)


def stored(memory: MemoryCluster, entity_type: str, entity_id: str) -> dict[str, Any]:
    state = memory.stored(entity_type, entity_id)
    assert state is not None
    found: dict[str, Any] = msgspec.msgpack.decode(state.data)
    return found
