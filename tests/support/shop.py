"""The hub that tests serve in processes of their own: `tests.support.shop:hub`."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from actorhub import Entity, EntityError, Hub, current, handler

_log = logging.getLogger("shop")


class Order(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


class Receipt(msgspec.Struct, frozen=True):
    number: int
    total_cents: int


class OutOfStock(EntityError):
    sku: str
    left: int


class Ledger(msgspec.Struct):
    placed: int = 0


class Orders(Entity[Ledger], name="orders"):
    """One customer's orders."""

    def __init__(self, prices: dict[str, int]) -> None:
        self._prices = prices

    async def process(self, order: Order) -> Receipt:
        self.state.placed += 1
        if order.quantity > 100:
            raise OutOfStock(sku=order.sku, left=3)
        return Receipt(self.state.placed, order.quantity * self._prices[order.sku])

    @handler(readonly=True)
    async def count(self) -> int:
        return self.state.placed

    async def add(self, first: int, second: int = 10) -> int:
        return first + second

    async def headers(self) -> dict[str, str]:
        return dict(current().headers)

    async def where(self) -> tuple[int, int]:
        """Return the process and the epoch that this runs in."""
        return os.getpid(), current().epoch

    async def watch(self, first: int, last: int) -> AsyncIterator[int]:
        for number in range(first, last):
            yield number


class Gate(Entity, name="gate", concurrency=10):
    """Counts in memory who came in, and who left again, cancelled or not."""

    def __init__(self) -> None:
        self._entered = 0
        self._left = 0
        self._opened = asyncio.Event()

    async def enter(self) -> str:
        self._entered += 1
        try:
            await self._opened.wait()
        finally:
            self._left += 1
        return "through"

    async def leave_task(self) -> str:
        """Leave a task behind that never ends."""

        async def stay() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.1)

        self._stray: object = asyncio.Task(stay())
        return "left"

    async def exit_in_a_task(self) -> str:
        """Leave a task behind that exits."""

        async def leave() -> None:
            sys.exit(3)

        self._stray = asyncio.Task(leave())
        return "left"

    async def cancel_all_tasks(self) -> str:
        """Cancel what runs in the event loop a moment later, whoever it belongs to."""
        asyncio.get_running_loop().call_later(0.1, lambda: [task.cancel() for task in asyncio.all_tasks()])
        return "left"

    async def cancel_other_tasks(self) -> str:
        """Cancel what runs in the event loop a moment later, except the main task, which is the oldest."""

        def cancel() -> None:
            for task in asyncio.all_tasks():
                if task.get_name() != "Task-1":
                    task.cancel()

        asyncio.get_running_loop().call_later(0.1, cancel)
        return "left"

    async def stop_the_loop(self) -> str:
        """Stop the event loop a moment later."""
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, loop.stop)
        return "left"

    async def leave_thread(self) -> str:
        """Leave a thread of the loop's executor behind that never ends."""
        self._stray = asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
        return "left"

    async def endless(self) -> AsyncIterator[int]:
        self._entered += 1
        try:
            number = 0
            while True:
                number += 1
                yield number
        finally:
            self._left += 1

    async def open(self) -> None:
        self._opened.set()

    async def counts(self) -> list[int]:
        return [self._entered, self._left]

    async def sleep(self, seconds: float) -> str:
        _log.info("gate %s sleeps", current().entity_id)
        await asyncio.sleep(seconds)
        return "slept"

    async def sleep_and_order(self, seconds: float) -> int:
        """Sleep, then place an order at the entity with the same id, which is in the same shard."""
        _log.info("gate %s sleeps", current().entity_id)
        await asyncio.sleep(seconds)
        receipt = await current().client(Orders)(current().entity_id).process(Order("tea", 1))
        return receipt.number


hub = Hub()
hub.register(Orders, lambda: Orders({"tea": 350}))
hub.register(Gate)

not_a_hub: dict[str, Any] = {}
