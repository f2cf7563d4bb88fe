"""What the cases call: the declarations of a small shop."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import msgspec

from actorhub import Breaker, Entity, EntityError, Hub, Retry, Singleton, cron, current, handler


class OrderPlaced(msgspec.Struct, frozen=True):
    order_id: str
    sku: str
    quantity: int

    def primary_key(self) -> str:
        return self.order_id


class Receipt(msgspec.Struct, frozen=True):
    number: int
    total_cents: int


class OutOfStock(EntityError):
    sku: str
    left: int
    note: str = ""


class Ledger(msgspec.Struct):
    placed: int = 0
    cents: int = 0


class Orders(Entity[Ledger], name="orders", max_idle=timedelta(minutes=5), mailbox_capacity=1000):
    LIMIT = 100

    def __init__(self, prices: dict[str, int]) -> None:
        self._prices = prices

    async def on_activate(self) -> None:
        self.state.placed += 0

    async def count(self) -> int:
        return self.state.placed

    async def process(self, event: OrderPlaced, /, cents: int = 5, *, gift: bool = False) -> Receipt:
        self.state.placed += 1
        if event.quantity > self.LIMIT:
            raise OutOfStock(sku=event.sku, left=0)
        await current().tell(current().client(Audit)("all").note(event.sku))
        await self.save()
        await self.save(Ledger(self.state.placed))
        return Receipt(self.state.placed, cents * event.quantity if gift else self._prices[event.sku])

    @handler(readonly=True, timeout=timedelta(seconds=5))
    async def ledger(self, since: int) -> Ledger:
        return self.state

    @handler(reentrant=True)
    async def watch(self, since: int) -> AsyncIterator[Receipt]:
        yield Receipt(since, 2)

    @handler(
        durable=True,
        retry=Retry(attempts=3, initial=timedelta(seconds=1), maximum=timedelta(minutes=1), on=(OutOfStock,)),
        retention=timedelta(hours=1),
    )
    async def pay(self, event: OrderPlaced, /, cents: int = 5, *, gift: bool = False) -> Receipt:
        return Receipt(self.state.placed, 0 if gift else cents * event.quantity)

    @handler(durable=True)
    async def history(self, since: int) -> AsyncIterator[Receipt]:
        yield Receipt(since, 2)


class Audit(Entity):
    async def note(self, text: str) -> None:
        pass


ONCE = Retry(attempts=1)


class Nightly(Singleton[Ledger], name="nightly", state_ttl=timedelta(days=30)):
    def __init__(self, hours: int) -> None:
        self._hours = hours

    async def on_become_leader(self) -> None:
        self.state.placed += 0

    async def run(self) -> None:
        await self.save(Ledger(1))

    @cron("0 3 * * *", timezone="Europe/Berlin", skip_if_older_than=timedelta(hours=1), overlap="skip", retry=ONCE)
    @cron("@weekly", jitter=timedelta(minutes=5), retry=ONCE, overlap="skip", breaker=Breaker(failures=3))
    async def roll_up(self, at: datetime) -> Receipt:
        return Receipt(self.state.placed, at.year)

    @handler(readonly=True)
    async def status(self) -> Ledger:
        return self.state

    async def add(self, cents: int, *, twice: bool = False) -> int:
        self.state.cents += 2 * cents if twice else cents
        return self.state.cents


hub = Hub()
hub.register(Nightly, lambda: Nightly(3))
hub.register(Orders, lambda: Orders({"tea": 350}))
hub.register(Audit)
