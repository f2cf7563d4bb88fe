"""The tables of the job, in their own schema beside the cluster's, and what must be true of them at the end."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import msgspec

from examples.demo.postgres import drop_schema
from examples.nightly.data import DayBook, FlightRow
from examples.nightly.gate import STEPS

_TABLES: Final = """
    create schema {schema};
    set search_path = {schema};
    create table flight (
        row bigint primary key, day date not null, airport text not null, departed boolean not null, delay integer
    );
    create index flight_by_day on flight (day);
    create table step (number integer primary key, name text not null);
    -- No key and no unique constraint below: nothing here keeps a step from taking effect twice.
    create table night (at timestamptz not null, day date not null);
    create table rollup (
        day date not null, airport text not null, flights integer not null, cancelled integer not null,
        arrived integer not null, delayed integer not null, mean_delay double precision
    );
    create table effect (
        day date not null, step text not null, epoch bigint not null, at timestamptz not null default clock_timestamp()
    );
"""
_SHOWN: Final = 5


class Check(msgspec.Struct, frozen=True):
    """Something that must be true of the books."""

    what: str
    wrong: str
    """SQL that returns a row for each violation."""


CHECKS: Final = (
    Check(
        "each step of each day took effect once",
        """
        select day, step, coalesce(e.times, 0) as times
        from (select d.day, s.name as step from (select distinct day from flight) as d, step as s) as x
        full join (select day, step, count(*) as times from effect group by 1, 2) as e using (day, step)
        where x.day is null or coalesce(e.times, 0) <> 1
        """,
    ),
    Check(
        "the effects are ordered by day and step, and epochs never decrease along them",
        """
        select day, step, epoch from (
            select e.*, lag(at) over each as at_before, lag(epoch) over each as epoch_before
            from effect as e join step as s on s.name = e.step
            window each as (order by day, s.number, at)
        ) as e
        where at <= at_before or epoch < epoch_before
        """,
    ),
    Check(
        "each night added one day, each at its own fire time",
        """
        select day, n.at, n.times
        from (select distinct day from flight) as d full join (
            select day, min(at) as at, count(*) as times, lag(max(at)) over (order by day) as before
            from night group by 1
        ) as n using (day)
        where d.day is null or coalesce(n.times, 0) <> 1 or n.at <= n.before
        """,
    ),
    Check(
        "each airport has one row for each day on which it had flights",
        """
        select day, airport, coalesce(r.times, 0) as times
        from (select distinct day, airport from flight) as f
        full join (select day, airport, count(*) as times from rollup group by 1, 2) as r using (day, airport)
        where f.day is null or coalesce(r.times, 0) <> 1
        """,
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
            await connection.executemany(
                f"insert into {self.schema}.step (number, name) values ($1, $2)", list(enumerate(STEPS, 1))
            )
        finally:
            await connection.close(timeout=10)

    async def fill(self, flights: Iterable[FlightRow]) -> None:
        """Insert the records into the table `flight`."""
        connection = await self._connect()
        try:
            await connection.copy_records_to_table("flight", schema_name=self.schema, records=flights)
        finally:
            await connection.close(timeout=10)

    async def wrong(self, check: Check) -> list[str]:
        """Return some of the rows that violate `check`, as text."""
        connection = await self._connect()
        try:
            await connection.execute(f"set search_path = {self.schema}")
            rows = await connection.fetch(check.wrong + f" limit {_SHOWN}")
        finally:
            await connection.close(timeout=10)
        return [", ".join(f"{name} {value}" for name, value in row.items()) for row in rows]

    async def days(self) -> dict[str, DayBook]:
        """Return the table `rollup`, by day and airport."""
        connection = await self._connect()
        try:
            rows = await connection.fetch(
                f"select day, airport, flights, cancelled, arrived, delayed, mean_delay from {self.schema}.rollup"
            )
        finally:
            await connection.close(timeout=10)
        return {f"{day} {airport}": DayBook(*numbers) for day, airport, *numbers in rows}

    async def effects(self) -> dict[str, int]:
        """Return the number of effects by step."""
        connection = await self._connect()
        try:
            rows = await connection.fetch(f"select step, count(*) as count from {self.schema}.effect group by 1")
        finally:
            await connection.close(timeout=10)
        found = {row["step"]: row["count"] for row in rows}
        return {step: found.get(step, 0) for step in STEPS}

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
