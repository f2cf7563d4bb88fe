"""What the runners host: one `Nightly`, which rolls up one day after the other, and one `Airport` per destination."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import date, datetime, timedelta
from typing import Final, ParamSpec, TypeVar

import msgspec

from actorhub import Entity, Hub, Singleton, cron, current, handler
from examples.nightly.gate import Gate

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA_VARIABLE: Final = "NIGHTLY_SCHEMA"
"""Environment variable with the schema of `flight`, `night`, `rollup` and `effect`. Default: `public`."""
GATE_VARIABLE: Final = "NIGHTLY_GATE"
"""Environment variable with the address of the demo's gate. Without it the job does not wait at boundaries."""
FIRST_DAY: Final = date(2013, 1, 1)
ONE_DAY: Final = timedelta(days=1)
PROMPT_MINUTES: Final = 15
"""An arrival is delayed if it is at least this late, as the U.S. Department of Transportation defines it."""


class Progress(msgspec.Struct):
    """How far the job has come."""

    day: date = FIRST_DAY
    """The next day to roll up."""
    until: date = FIRST_DAY
    """The days before this one are over."""


class Flight(msgspec.Struct, frozen=True):
    """One scheduled flight, with the fields that the job uses."""

    airport: str
    """The destination."""
    departed: bool
    delay: int | None
    """At arrival, in minutes, negative if early. `None`: it did not arrive there."""


class Rollup(msgspec.Struct):
    """One day at one airport."""

    airport: str
    flights: int = 0
    cancelled: int = 0
    arrived: int = 0
    delayed: int = 0
    minutes: int = 0
    """Sum of the delays of the flights that arrived."""

    @property
    def mean_delay(self) -> float | None:
        """In minutes, or `None` if no flight arrived."""
        return self.minutes / self.arrived if self.arrived else None


class Totals(msgspec.Struct):
    """All days at one airport."""

    days: int = 0
    flights: int = 0
    cancelled: int = 0
    arrived: int = 0
    delayed: int = 0
    minutes: int = 0


class Airport(Entity[Totals], name="airport"):
    """One destination, by its IATA code."""

    @handler(durable=True)
    async def add(self, day: Rollup) -> None:
        """Add a day. If a day came twice, it would count twice."""
        state = self.state
        state.days += 1
        state.flights += day.flights
        state.cancelled += day.cancelled
        state.arrived += day.arrived
        state.delayed += day.delayed
        state.minutes += day.minutes

    @handler(readonly=True)
    async def totals(self) -> Totals:
        """Return the sums."""
        return self.state


class Nightly(Singleton[Progress], name="nightly"):
    """Rolls up the flights of each completed day in four steps. Each step commits its result with its effects.

    Args:
        schema: Schema of the tables.
        gate: Where to report that the job reached a boundary.
    """

    def __init__(self, schema: str, gate: Gate) -> None:
        self._schema = schema
        self._gate = gate
        self._day_is_over = asyncio.Event()

    @cron("* * * * * *")  # a second stands for a night; in production it would be "30 2 * * *"
    async def night(self, at: datetime) -> None:
        """Record that one more day is over, if there is one."""
        day = self.state.until
        async with current().transaction() as sql:
            if await sql.fetchval(f"select exists (select from {self._schema}.flight where day = $1)", day):
                await sql.execute(f"insert into {self._schema}.night (at, day) values ($1, $2)", at, day)
                self.state.until = day + ONE_DAY
        self._day_is_over.set()

    async def run(self) -> None:
        """Roll up one day after the other. A new leader continues with the step at which the last one was lost."""
        while True:
            while self.state.day >= self.state.until:
                self._day_is_over.clear()
                await self._day_is_over.wait()
            day = self.state.day
            await self._gate.reached(day, "begins")
            flights = await self._step(day, "load", self._load, day)
            rollups = await self._step(day, "rollup", self._roll_up, day, flights)
            await self._step(day, "write", self._write, day, rollups)
            await self._step(day, "publish", self._publish, day, rollups)
            await self.save(msgspec.structs.replace(self.state, day=day + ONE_DAY))

    @handler(readonly=True)
    async def progress(self) -> Progress:
        """Return how far the job has come."""
        return self.state

    async def _step(
        self, day: date, name: str, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        result = await current().step(name, function, *args, **kwargs)
        await self._gate.reached(day, f"{name} is stored")
        return result

    async def _load(self, day: date) -> list[Flight]:
        async with current().transaction() as sql:
            rows = await sql.fetch(
                f"select airport, departed, delay from {self._schema}.flight where day = $1 order by row", day
            )
        await self._done(day, "load")
        return [Flight(*row) for row in rows]

    async def _roll_up(self, day: date, flights: list[Flight]) -> list[Rollup]:
        rollups = roll_up(flights)
        await self._done(day, "rollup")
        return rollups

    async def _write(self, day: date, rollups: list[Rollup]) -> None:
        async with current().transaction() as sql:
            await sql.executemany(
                f"insert into {self._schema}.rollup (day, airport, flights, cancelled, arrived, delayed, mean_delay) "
                "values ($1, $2, $3, $4, $5, $6, $7)",
                [(day, r.airport, r.flights, r.cancelled, r.arrived, r.delayed, r.mean_delay) for r in rollups],
            )
        await self._done(day, "write")

    async def _publish(self, day: date, rollups: list[Rollup]) -> None:
        airports = current().client(Airport)
        for rollup in rollups:
            await current().tell(airports(rollup.airport).add(rollup))
        await self._done(day, "publish")

    async def _done(self, day: date, step: str) -> None:
        """Insert a row into the side table, in the step's commit. A step that took effect twice would have two rows."""
        async with current().transaction() as sql:
            await sql.execute(
                f"insert into {self._schema}.effect (day, step, epoch) values ($1, $2, $3)", day, step, current().epoch
            )
        await self._gate.reached(day, f"{step} runs")


def roll_up(flights: list[Flight]) -> list[Rollup]:
    """Return the numbers of a day by airport, in the order of the airport codes."""
    found: dict[str, Rollup] = {}
    for flight in flights:
        rollup = found.setdefault(flight.airport, Rollup(flight.airport))
        rollup.flights += 1
        rollup.cancelled += not flight.departed
        if flight.delay is not None:
            rollup.arrived += 1
            rollup.delayed += flight.delay >= PROMPT_MINUTES
            rollup.minutes += flight.delay
    return [found[airport] for airport in sorted(found)]


hub = Hub()
hub.register(Airport)
hub.register(
    Nightly, lambda: Nightly(os.environ.get(SCHEMA_VARIABLE, "public"), Gate(os.environ.get(GATE_VARIABLE, "")))
)
