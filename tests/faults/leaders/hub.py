"""The hub of the tests that kill leaders: a singleton that counts, runs every second, and notes who does what.

The environment variable `DURABLE_MUTANT` names a defect of the product to run with; nothing but this module reads it.
"""

import asyncio
import os
import time
from datetime import datetime, timedelta
from typing import Final

import msgspec

from actorhub import Hub, Retry, Singleton, cron, current
from tests.faults import mutants
from tests.faults.cluster.notes import Notes

TABLES: Final = """
    create table public.done (
        seq bigserial, number bigint not null, part text not null, epoch bigint not null, incarnation text not null,
        at timestamptz not null default clock_timestamp()
    );
    create index done_by_epoch on public.done (epoch);
    create table public.tick (
        seq bigserial, fire_time timestamptz not null, ticks bigint not null, epoch bigint not null,
        incarnation text not null, at timestamptz not null default clock_timestamp()
    )
"""
"""Without a unique constraint: a second commit of a step or a fire time must show."""
LEAD: Final = "lead"
PARTS: Final = ("first", "second")
_PACE: Final = 0.02
"""Seconds between two numbers."""
_PATIENT: Final = Retry(attempts=100, initial=timedelta(milliseconds=20), maximum=timedelta(milliseconds=200))


notes = Notes()


def _note_turn(what: str) -> None:
    here = current()
    notes.add(time.monotonic(), what, here.epoch, here.incarnation)


class Count(msgspec.Struct):
    """How far the singleton came."""

    number: int = 0
    """The last number of which both parts are done."""
    ticks: int = 0
    """How many fire times of the schedule ran."""


class Leader(Singleton[Count], name="leader"):
    """Does number after number, each in two steps and a save, and a tick each second."""

    async def on_become_leader(self) -> None:
        _note_turn("become")

    async def on_lose_leadership(self) -> None:
        _note_turn("lose")

    async def run(self) -> None:
        epoch = current().epoch
        await current().step(f"{LEAD} {epoch}", _note, epoch, LEAD)
        while True:
            number = self.state.number + 1
            for part in PARTS:
                if await current().step(part, _note, number, part) != number:
                    raise RuntimeError(f"{part} of {number} returned what was stored for another number")
            await self.save(msgspec.structs.replace(self.state, number=number))
            await asyncio.sleep(_PACE)

    @cron("* * * * * *", retry=_PATIENT)
    async def tick(self, at: datetime) -> None:
        here = current()
        self.state.ticks += 1
        async with here.transaction() as sql:
            await sql.execute(
                "insert into public.tick (fire_time, ticks, epoch, incarnation) values ($1, $2, $3, $4)",
                at, self.state.ticks, here.epoch, here.incarnation,
            )  # fmt: skip


async def _note(number: int, part: str) -> int:
    here = current()
    async with here.transaction() as sql:
        await sql.execute(
            "insert into public.done (number, part, epoch, incarnation) values ($1, $2, $3, $4)",
            number, part, here.epoch, here.incarnation,
        )  # fmt: skip
    return number


hub = Hub()
hub.register(Leader)

mutants.apply(os.environ.get("DURABLE_MUTANT", ""))
