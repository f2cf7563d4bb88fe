"""The hub of the saga: orders that reserve stock and charge a card, and undo it where the card is declined.

`SAGA_PAYMENTS` is where the payment service is; `SAGA_MUTANT` names a defect of the product to run with.
"""

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import msgspec

from actorhub import Entity, EntityError, Hub, Retry, current, handler
from tests.faults import mutants

_PATIENT: Final = Retry(attempts=100, initial=timedelta(milliseconds=20), maximum=timedelta(milliseconds=500))
payments: dict[str, str] = {"url": os.environ.get("SAGA_PAYMENTS", "")}
"""Where the payment service is."""


class OutOfStock(EntityError):
    sku: str


class Declined(EntityError):
    reason: str


class PaymentsDown(EntityError):
    status: int


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


class StockState(msgspec.Struct):
    left: int = 1_000_000
    reserved: list[str] = []
    released: list[str] = []


class Stock(Entity[StockState], name="stock"):
    """Believes whoever asks: to reserve twice for one order is the asker's mistake."""

    @handler(durable=True)
    async def reserve(self, order: str, quantity: int) -> int:
        if quantity > self.state.left:
            raise OutOfStock(sku=current().entity_id)
        self.state.left -= quantity
        self.state.reserved.append(order)
        return self.state.left

    @handler(durable=True)
    async def release(self, order: str, quantity: int) -> int:
        self.state.left += quantity
        self.state.released.append(order)
        return self.state.left

    @handler(readonly=True)
    async def seen(self) -> StockState:
        return self.state


class Payment(Entity[list[str]], name="payment"):
    """Charges the card of one order, under the id of the message, which is the same in each of its runs."""

    @handler(
        durable=True,
        retry=msgspec.structs.replace(_PATIENT, on=(PaymentsDown,)),
        timeout=timedelta(seconds=8),
    )
    async def charge(self, cents: int) -> str:
        key, order = str(current().message_id), current().entity_id
        status, answer = await asyncio.to_thread(_post, {"order": order, "cents": cents}, key)
        if status == 402:
            raise Declined(reason=answer["reason"])
        if status != 200:
            raise PaymentsDown(status=status)
        self.state.append(answer["id"])
        return answer["id"]

    @handler(readonly=True)
    async def charges(self) -> list[str]:
        return self.state


class Books(Entity[list[str]], name="books"):
    """Notes every order that was decided."""

    @handler(durable=True)
    async def note(self, order: str, how: str) -> int:
        self.state.append(f"{order} {how}")
        return len(self.state)

    @handler(readonly=True)
    async def notes(self) -> list[str]:
        return self.state


class OrderState(msgspec.Struct):
    status: str = "new"
    charge: str = ""
    number: int = 0


class Order(Entity[OrderState], name="order"):
    @handler(durable=True, retry=_PATIENT)
    async def place(self, lines: list[Line], cents: int) -> str:
        me, undo = current().entity_id, list[tuple[str, Callable[..., Any], int]]()
        try:
            for line in lines:
                stock = current().client(Stock)(line.sku)
                await current().step(f"reserve {line.sku}", stock.reserve, me, line.quantity)
                undo.append((f"release {line.sku}", stock.release, line.quantity))
            self.state.charge = await current().step("charge", current().client(Payment)(me).charge, cents)
            self.state.status = "placed"
        except EntityError:
            for name, release, quantity in reversed(undo):
                await current().step(name, release, me, quantity)
            self.state.status = "cancelled"
        # Not in a step: what a durable handler asks is sent once, too.
        self.state.number = await current().client(Books)("all").note(me, self.state.status)
        return self.state.status


hub = Hub()
for cls in (Stock, Payment, Books, Order):
    hub.register(cls)

mutants.apply(os.environ.get("SAGA_MUTANT", ""))


def _post(body: dict[str, object], key: str) -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(payments["url"], json.dumps(body).encode(), {"Idempotency-Key": key})  # noqa: S310 - on the loopback
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - on the loopback
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
