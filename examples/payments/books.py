"""The bank's own tables, in their own schema beside the cluster's, and what must be true of them at the end."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import msgspec

from examples.demo.postgres import drop_schema
from examples.payments.driver import Answer
from examples.payments.entities import Statement
from examples.payments.plan import Holder, Order

_TABLES: Final = """
    create schema {schema};
    set search_path = {schema};
    -- No key and no unique constraint: nothing here keeps a step from being booked twice.
    create table ledger (
        transfer text not null,
        account text not null,
        other text not null,
        kind text not null,
        cents bigint not null,
        booking bigint not null,
        balance bigint not null,
        at timestamptz not null default clock_timestamp()
    );
    create table holder (account text primary key, name text not null, cents bigint not null);
    create table statement (
        account text primary key, balance bigint not null, bookings bigint not null, closed boolean not null
    );
    create table answer (
        transfer text primary key, source text not null, target text not null, cents bigint not null,
        outcome text not null, booking bigint, balance bigint
    );
"""
_STATEMENT_TIMEOUT: Final = 120.0
_SHOWN: Final = 5


class Check(msgspec.Struct, frozen=True):
    """Something that must be true of the books."""

    what: str
    wrong: str
    """SQL that returns a row for each violation."""


CHECKS: Final = (
    Check(
        "the balances add up to what was paid in at the openings",
        """
        select (select sum(balance) from statement) as balances, (select sum(cents) from holder) as paid_in
        where (select sum(balance) from statement) is distinct from (select sum(cents) from holder)
        """,
    ),
    Check(
        "each account's state equals its rows in the ledger",
        """
        select account, s.balance, s.bookings, l.cents as ledger_cents, l.rows as ledger_rows
        from statement as s full join (
            select account, sum(cents) as cents, count(*) as rows from ledger group by 1
        ) as l using (account)
        where (s.balance, s.bookings) is distinct from (l.cents, l.rows)
        """,
    ),
    Check(
        "each account's bookings are numbered without gaps, and each continues the balance before it",
        """
        select account, booking, balance from (
            select *, row_number() over each as number, sum(cents) over each as running
            from ledger window each as (partition by account order by booking, at)
        ) as l
        where (booking, balance) is distinct from (number, running) or balance < 0
        """,
    ),
    Check(
        "each holder opened one account once",
        """
        select account, h.cents, l.rows
        from holder as h full join (
            select account, min(cents) as cents, count(*) as rows from ledger where kind = 'opening' group by 1
        ) as l using (account)
        where (h.cents, 1) is distinct from (l.cents, l.rows)
        """,
    ),
    Check(
        "each transfer that was answered with a receipt is debited once, with that booking and balance",
        """
        select transfer, a.outcome, a.source, l.accounts, l.rows
        from (select * from answer where outcome = 'receipt') as a full join (
            select transfer, array_agg(account) as accounts, min(other) as other, min(cents) as cents,
                min(booking) as booking, min(balance) as balance, count(*) as rows
            from ledger where kind = 'debit' group by 1
        ) as l using (transfer)
        where (l.accounts, l.other, l.cents, l.booking, l.balance, l.rows)
            is distinct from (array[a.source], a.target, -a.cents, a.booking, a.balance, 1)
        """,
    ),
    Check(
        "each of them is credited once at its target, or refunded once at its source if the target is closed",
        """
        select transfer, a.source, a.target, l.accounts, l.kinds
        from (select * from answer where outcome = 'receipt') as a full join (
            select transfer, array_agg(account) as accounts, array_agg(kind) as kinds, sum(cents) as cents
            from ledger where kind in ('credit', 'refund') group by 1
        ) as l using (transfer)
        left join statement as s on s.account = a.target
        where l.cents is distinct from a.cents
            or not coalesce(
                (l.kinds = '{credit}' and l.accounts = array[a.target])
                or (l.kinds = '{refund}' and l.accounts = array[a.source] and s.closed),
                false
            )
        """,
    ),
    Check(
        "each transfer that was refused left no row",
        "select * from answer join ledger using (transfer) where outcome <> 'receipt'",
    ),
)


class Books:
    """The tables of one run.

    Args:
        url: The database.
        schema: Theirs alone.
    """

    def __init__(self, url: str, schema: str) -> None:
        self.schema = schema
        self._url = url

    async def create(self) -> None:
        """Create the schema and the tables."""
        connection = await self._connect()
        try:
            await connection.execute(_TABLES.format(schema=self.schema))
        finally:
            await connection.close(timeout=10)

    async def note(
        self,
        holders: Iterable[Holder],
        statements: Mapping[str, Statement],
        answers: Mapping[str, tuple[Order, Answer]],
    ) -> None:
        """Store the opening balances, the states of the accounts and the answers to callers beside the ledger."""
        rows: dict[str, list[tuple[object, ...]]] = {
            "holder": [(holder.account, holder.name, holder.cents) for holder in holders],
            "statement": [(name, s.balance, s.bookings, s.closed) for name, s in statements.items()],
            "answer": [
                (
                    order.transfer.id,
                    order.source,
                    order.transfer.target,
                    order.transfer.cents,
                    answer.outcome,
                    answer.booking,
                    answer.balance,
                )
                for order, answer in answers.values()
            ],
        }
        connection = await self._connect()
        try:
            for table, records in rows.items():
                await connection.copy_records_to_table(table, schema_name=self.schema, records=records)
        finally:
            await connection.close(timeout=10)

    async def wrong(self, check: Check) -> list[str]:
        """Return some of the rows that violate `check`, as text."""
        connection = await self._connect()
        try:
            await connection.execute(f"set search_path = {self.schema}")
            rows = await connection.fetch(check.wrong + f" limit {_SHOWN}", timeout=_STATEMENT_TIMEOUT)
        finally:
            await connection.close(timeout=10)
        return [", ".join(f"{name} {value}" for name, value in row.items()) for row in rows]

    async def by_kind(self) -> dict[str, int]:
        """Return the number of bookings by kind."""
        connection = await self._connect()
        try:
            rows = await connection.fetch(f"select kind, count(*) as count from {self.schema}.ledger group by 1")
        finally:
            await connection.close(timeout=10)
        return {row["kind"]: row["count"] for row in rows}

    async def _connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(self._url, timeout=10)


@asynccontextmanager
async def fresh_books(url: str, schema: str) -> AsyncGenerator[Books, None]:
    """Provide empty tables, which are removed after the block."""
    books = Books(url, schema)
    try:
        await books.create()
        yield books
    finally:
        await drop_schema(url, schema)
