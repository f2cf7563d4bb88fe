"""The hub of the tests about durable messages: `tests.ops.durable_shop:hub`."""

import asyncio
from collections import defaultdict
from datetime import timedelta

import msgspec

from actorhub import Entity, EntityError, Hub, Retry, current, handler


class Booking(msgspec.Struct, frozen=True):
    amount: int
    text: str = ""


class NotCovered(EntityError):
    missing: int


class Balance(msgspec.Struct):
    cents: int = 0
    bookings: int = 0


QUICK = Retry(attempts=2, initial=timedelta(milliseconds=10))
PATIENT = Retry(attempts=3, initial=timedelta(hours=1), maximum=timedelta(hours=1))


_held: defaultdict[str, list[asyncio.Event]] = defaultdict(list)


async def release(account: str) -> None:
    """Let the handlers end that `hold` the account in this process, or the one that is about to."""
    while account not in _held:
        await asyncio.sleep(0.01)
    for event in _held.pop(account, ()):
        event.set()


class Accounts(Entity[Balance], name="accounts"):
    """One account: bookings are durable, and some of them fail."""

    def __init__(self) -> None:
        self._mended = False

    @handler(durable=True)
    async def book(self, booking: Booking) -> int:
        if self.state.cents + booking.amount < 0:
            raise NotCovered(missing=-self.state.cents - booking.amount)
        self.state.cents += booking.amount
        self.state.bookings += 1
        return self.state.cents

    @handler(durable=True, retry=QUICK)
    async def fragile(self, text: str, times: int = 1) -> str:
        if not self._mended:
            raise KeyError(text)
        return text * times

    @handler(durable=True, retry=PATIENT)
    async def patient(self, text: str) -> str:
        if not self._mended:
            raise KeyError(text)
        return text

    @handler(durable=True)
    async def hold(self) -> str:
        event = asyncio.Event()
        _held[current().entity_id].append(event)
        await event.wait()
        return "released"

    @handler(durable=True)
    async def counted(self) -> str:
        return await current().step("count", self.hold)

    @handler(durable=True)
    async def approved(self) -> bool:
        return await current().deferred("approval", bool).wait(timeout=timedelta(hours=1))

    @handler(durable=True)
    async def rested(self) -> str:
        await current().sleep(timedelta(hours=2), name="night")
        return "rested"

    @handler(durable=True)
    async def headers(self) -> dict[str, str]:
        return dict(current().headers)

    async def mend(self) -> None:
        self._mended = True

    @handler(readonly=True)
    async def balance(self) -> Balance:
        return self.state


hub = Hub()
hub.register(Accounts)
