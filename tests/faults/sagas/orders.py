"""Places orders, waits for their ends, and judges what was paid, reserved and noted."""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final

import msgspec

from actorhub import ActorhubError, Cluster
from tests.faults.sagas.hub import Books, Line, Order, Payment, Stock
from tests.faults.sagas.payments import DECLINED_CENTS, PaymentService

_SKUS: Final = ("tea", "milk", "salt")


class Placed(msgspec.Struct, frozen=True):
    """An order that was told."""

    name: str
    message_id: int
    skus: Sequence[str]
    is_declined: bool

    @property
    def end(self) -> str:
        """How it should end."""
        return "cancelled" if self.is_declined else "placed"


class Orders:
    """The orders of one test."""

    def __init__(
        self, client: Cluster, service: PaymentService, seed: int, patience: timedelta = timedelta(seconds=90)
    ) -> None:
        self.placed: list[Placed] = []
        self._client = client
        self._service = service
        self._patience = patience
        self._chance = random.Random(seed)

    async def place(self, count: int = 1) -> None:
        """Tell so many orders more."""
        for _ in range(count):
            name = f"o{len(self.placed)}"
            skus = self._chance.sample(_SKUS, 2)
            is_declined = self._chance.random() < 0.1
            cents = DECLINED_CENTS if is_declined else 100
            message_id = await self._accepted(name, [Line(sku, 1) for sku in skus], cents)
            self.placed.append(Placed(name, message_id, skus, is_declined))

    async def _accepted(self, name: str, lines: list[Line], cents: int) -> int:
        """Tell an order until that succeeds; its key makes it one order, however often that takes."""
        while True:
            try:
                return await self._client.tell(self._client.client(Order)(name).place(lines, cents), key=name)
            except ActorhubError:
                await asyncio.sleep(0.05)

    async def keep_placing(self, pause: float, until: asyncio.Event) -> None:
        """Tell one order after the other until the event."""
        while not until.is_set():
            await self.place()
            await asyncio.sleep(self._chance.uniform(0, 2 * pause))

    async def violations(self) -> list[str]:
        """Wait until all have ended; return what is wrong, in words."""
        found: list[str] = []
        for order in self.placed:
            end = await self._client.reply(order.message_id, timeout=self._patience)
            if end != order.end:
                found.append(f"{order.name} ended as {end}")
        paid = {order.name for order in self.placed if not order.is_declined}
        found += _miscounted("charged", self._service.charges(), paid)
        for order in self.placed:
            charges = await self._client.client(Payment)(order.name).charges()
            if len(charges) != (order.name in paid):
                found.append(f"{order.name} has the charges {charges}")
        for sku in _SKUS:
            stock = await self._client.client(Stock)(sku).seen()
            ordered = {order.name for order in self.placed if sku in order.skus}
            found += _miscounted(f"reserved {sku}", Counter(stock.reserved), ordered)
            found += _miscounted(f"released {sku}", Counter(stock.released), ordered - paid)
        notes = Counter(await self._client.client(Books)("all").notes())
        return found + _miscounted("noted", notes, {f"{order.name} {order.end}" for order in self.placed})


def _miscounted(what: str, counts: Counter[str], wanted: Collection[str]) -> list[str]:
    """Say which orders something did not happen to once."""
    return [
        f"{order} was {what} {counts[order]} times"
        for order in sorted({*wanted, *counts})
        if counts[order] != (order in wanted)
    ]
