"""An entity that is asked for what must happen once."""

from datetime import timedelta

import msgspec

from actorhub import Cluster, Entity, current, handler
from tests.steps.entities import SOON, Declined, hub
from tests.support.gates import gates


class Line(msgspec.Struct):
    """A line of a transfer."""

    price: float
    tags: set[str] = set()
    note: str = ""


class Bank(Entity[list[str]]):
    """Notes each payment."""

    @handler(durable=True)
    async def pay(self, what: str) -> int:
        self.state.append(what)
        gates["keys"].log.append(repr(current().key))
        return len(self.state)

    @handler(durable=True)
    async def pay_slowly(self, what: str) -> int:
        gates["slow"].log.append(str(current().message_id))
        await gates["bank"].pass_through()
        self.state.append(what)
        return len(self.state)

    @handler(durable=True, retention=timedelta(microseconds=1))
    async def pay_and_forget(self, what: str) -> int:
        self.state.append(what)
        return len(self.state)

    @handler(durable=True, retry=SOON)
    async def try_to_pay(self, what: str) -> int:
        gates["tries"].enter()
        if gates["tries"].entered <= SOON.attempts:
            raise OSError("the bank is closed")
        self.state.append(what)
        return len(self.state)

    @handler(durable=True)
    async def decline(self, what: str) -> None:
        gates["declined"].log.append(what)
        raise Declined(why=f"{what} number {len(gates['declined'].log)}")

    @handler(durable=True)
    async def transfer(self, amount: float, *, lines: list[Line] = [], urgent: bool = False) -> int:  # noqa: B006 - a default
        self.state.append(f"{amount} for {len(lines)}")
        return len(self.state)

    async def paid(self) -> list[str]:
        return self.state


hub.register(Bank)


def bank() -> Bank:
    """Return the bank, to be called in the handler that runs here."""
    return current().client(Bank)("b")


async def paid(cluster: Cluster) -> list[str]:
    """Return what the bank has noted."""
    return await cluster.client(Bank)("b").paid()
