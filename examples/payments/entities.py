"""What the runners host: one `Account` per number, and the bank's own table `ledger` beside it.

A transfer concerns two accounts, which can live on two machines. Each of its steps is one durable message to one
account. A run of a step commits in one transaction: the state of the account, its row in `ledger`, the reply, and the
message for the next step. So a step happens once or not at all, and if it happens, the next one happens once.
"""

import os
from typing import Final, Literal

import msgspec

from actorhub import Entity, EntityError, Hub, current, handler

SCHEMA_VARIABLE: Final = "PAYMENTS_SCHEMA"
"""Environment variable with the schema of `ledger`."""

Kind = Literal["opening", "debit", "credit", "refund"]


class Opening(msgspec.Struct, frozen=True):
    """A new account."""

    holder: str
    cents: int

    def primary_key(self) -> str:
        return "opening"


class Transfer(msgspec.Struct, frozen=True):
    """An order to send money from the account that receives it."""

    id: str
    target: str
    cents: int

    def primary_key(self) -> str:
        return self.id


class Money(msgspec.Struct, frozen=True):
    """Money in transit: it is debited from one account, and not yet booked in the other."""

    transfer: str
    source: str
    """The account from which the money comes, or comes back."""
    cents: int

    def primary_key(self) -> str:
        return self.transfer


class Receipt(msgspec.Struct, frozen=True):
    """Confirms that a transfer was debited."""

    booking: int
    """Number of the booking in the account, from 1."""
    balance: int
    """Balance of the account afterwards, in cents."""


class Statement(msgspec.Struct):
    """The state of one account."""

    holder: str = ""
    """Empty if the account was never opened."""
    balance: int = 0
    """In cents."""
    bookings: int = 0
    closed: bool = False


class InsufficientFunds(EntityError):
    """The balance is smaller than the amount to send. Nothing was booked."""

    balance: int
    cents: int


class AccountClosed(EntityError):
    """The account is closed, or was never opened. Nothing was booked."""

    account: str


class Account(Entity[Statement], name="account"):
    """One account, by its number.

    Args:
        ledger: Name of the table, including its schema.
    """

    def __init__(self, ledger: str) -> None:
        self._insert = (
            f"insert into {ledger} (transfer, account, other, kind, cents, booking, balance) "
            "values ($1, $2, $3, $4, $5, $6, $7)"
        )

    @handler(durable=True)
    async def open(self, opening: Opening) -> Receipt:
        """Open the account."""
        self.state.holder = opening.holder
        return await self._book("", "", "opening", opening.cents)

    @handler(durable=True)
    async def transfer(self, order: Transfer) -> Receipt:
        """Debit this account and send the money to the other one.

        Raises:
            AccountClosed: This account is closed, or was never opened.
            InsufficientFunds: The balance is too small.
        """
        account = current().entity_id
        if self.state.closed or not self.state.holder:
            raise AccountClosed(account=account)
        if order.cents > self.state.balance:
            raise InsufficientFunds(balance=self.state.balance, cents=order.cents)
        money = Money(order.id, account, order.cents)
        await current().tell(current().client(Account)(order.target).credit(money))
        return await self._book(order.id, order.target, "debit", -order.cents)

    @handler(durable=True)
    async def credit(self, money: Money) -> None:
        """Book incoming money. A closed account sends it back."""
        if self.state.closed or not self.state.holder:
            back = Money(money.transfer, current().entity_id, money.cents)
            await current().tell(current().client(Account)(money.source).refund(back))
        else:
            await self._book(money.transfer, money.source, "credit", money.cents)

    @handler(durable=True)
    async def refund(self, money: Money) -> None:
        """Book money that comes back. It is the account's own, so it is booked even if the account is closed."""
        await self._book(money.transfer, money.source, "refund", money.cents)

    @handler(durable=True)
    async def close(self) -> None:
        """Close the account: from now on it sends and accepts nothing."""
        self.state.closed = True

    @handler(readonly=True)
    async def statement(self) -> Statement:
        """Return the state of the account."""
        return self.state

    async def _book(self, transfer: str, other: str, kind: Kind, cents: int) -> Receipt:
        state = self.state
        state.balance += cents
        state.bookings += 1
        async with current().transaction() as sql:  # the commit of the state also commits the row
            await sql.execute(
                self._insert, transfer, current().entity_id, other, kind, cents, state.bookings, state.balance
            )
        return Receipt(state.bookings, state.balance)


hub = Hub()
hub.register(Account, lambda: Account(f"{os.environ.get(SCHEMA_VARIABLE, 'public')}.ledger"))
