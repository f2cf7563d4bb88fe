"""The nightly example's plan, its roll-up, and its checks on books that are right and that are wrong in one place."""

from collections.abc import AsyncIterator
from datetime import date

import asyncpg
import pytest

from examples.flights.check import differences
from examples.nightly.books import CHECKS, Books, fresh_books
from examples.nightly.data import DayBook, expected_days, expected_totals, load_days, rows_of
from examples.nightly.entities import Flight, Rollup, Totals, roll_up
from examples.nightly.gate import BOUNDARIES, STEPS
from examples.nightly.strikes import planned_strikes

FIRST, SECOND = date(2013, 1, 1), date(2013, 1, 2)
FLIGHTS = [
    (1, FIRST, "BOS", True, 20),
    (2, FIRST, "BOS", False, None),
    (3, FIRST, "SFO", True, None),
    (4, SECOND, "BOS", True, -5),
]
JOB = """
    insert into {schema}.night values
        ('2026-01-01 00:00:01+00', '2013-01-01'), ('2026-01-01 00:00:02+00', '2013-01-02');
    insert into {schema}.rollup values
        ('2013-01-01', 'BOS', 2, 1, 1, 1, 20), ('2013-01-01', 'SFO', 1, 0, 0, 0, null),
        ('2013-01-02', 'BOS', 1, 0, 1, 0, -5);
    insert into {schema}.effect
    select d.day, s.name, d.epoch + s.number / 3, d.at + s.number * interval '1 s'
    from {schema}.step as s, (values
        (date '2013-01-01', 5, timestamptz '2026-01-01 00:01:00'), (date '2013-01-02', 6, '2026-01-01 00:02:00')
    ) as d (day, epoch, at)
"""


@pytest.fixture
async def books(postgres_url: str) -> AsyncIterator[Books]:
    """Books of two days in which everything is right."""
    async with fresh_books(postgres_url, "nightly_books") as made:
        await made.fill(FLIGHTS)
        await execute(postgres_url, JOB.format(schema=made.schema))
        yield made


async def execute(url: str, statement: str) -> None:
    """Run a statement."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=5)


async def test_a_job_that_did_everything_once_passes_every_check(books: Books) -> None:
    """Two days, a change of leader between two steps, and one between the days contradict nothing."""
    assert [await books.wrong(check) for check in CHECKS] == [[] for _ in CHECKS]
    assert await books.effects() == dict.fromkeys(STEPS, 2)
    assert (await books.days())["2013-01-01 BOS"] == DayBook(2, 1, 1, 1, 20.0)


@pytest.mark.parametrize(
    ("mistake", "found_by"),
    [
        ("delete from effect where step = 'publish' and day = '2013-01-01'", {0}),
        ("insert into effect select day, step, epoch, at + interval '1 ms' from effect where step = 'load'", {0}),
        ("insert into effect select * from effect where step = 'write'", {0, 1}),
        ("insert into effect values ('2013-01-03', 'load', 9, '2026-01-02')", {0}),
        ("update effect set epoch = 4 where step = 'rollup' and day = '2013-01-01'", {1}),
        ("update effect set epoch = 8 where step = 'load' and day = '2013-01-02'", {1}),
        ("update effect set at = '2026-01-02' where step = 'load' and day = '2013-01-01'", {1}),
        ("delete from night where day = '2013-01-02'", {2}),
        ("insert into night select at + interval '5 ms', day from night where day = '2013-01-02'", {2}),
        ("update night set at = '2026-01-01 00:00:01+00'", {2}),
        ("insert into night values ('2026-01-01 00:00:03+00', '2013-01-03')", {2}),
        ("insert into rollup select * from rollup where airport = 'SFO'", {3}),
        ("delete from rollup where airport = 'SFO'", {3}),
        ("update rollup set day = '2013-01-02' where airport = 'SFO'", {3}),
    ],
)
async def test_a_mistake_of_the_job_is_found(postgres_url: str, books: Books, mistake: str, found_by: set[int]) -> None:
    """Whatever was left out, done twice, or done in another order fails the checks that it contradicts, no others."""
    await execute(postgres_url, f"set search_path = {books.schema}; {mistake}")
    assert {number for number, check in enumerate(CHECKS) if await books.wrong(check)} == found_by


def test_a_day_is_rolled_up_by_airport() -> None:
    """Cancelled flights and those that landed elsewhere count as flights, and add nothing to the delay."""
    flights = [Flight("SFO", departed=True, delay=None), Flight("BOS", departed=True, delay=15)]
    flights += [Flight("BOS", departed=False, delay=None), Flight("BOS", departed=True, delay=-4)]
    assert roll_up(flights) == [Rollup("BOS", 3, 1, 2, 1, 11), Rollup("SFO", 1, 0, 0, 0, 0)]
    assert [rollup.mean_delay for rollup in roll_up(flights)] == [5.5, None]


def test_the_job_and_pandas_agree_on_real_days() -> None:
    """The roll-up of three days and the totals that follow from it are those that pandas computes."""
    frame = load_days(3)
    days: dict[date, list[Flight]] = {}
    for _, day, airport, departed, delay in rows_of(frame):
        days.setdefault(day, []).append(Flight(airport, departed, delay))
    found: dict[str, DayBook] = {}
    totals: dict[str, Totals] = {}
    for day, flights in days.items():
        for one in roll_up(flights):
            found[f"{day} {one.airport}"] = DayBook(
                one.flights, one.cancelled, one.arrived, one.delayed, one.mean_delay
            )
            total = totals.setdefault(one.airport, Totals())
            total.days += 1
            for name in ("flights", "cancelled", "arrived", "delayed", "minutes"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
    assert differences(expected_days(frame), found) == []
    assert differences(expected_totals(frame), totals) == []
    assert len(days) == 3


def test_each_boundary_sees_a_kill_and_a_move_in_each_round() -> None:
    """The plan of a round names each boundary on two days, with one blow of each kind."""
    plan = planned_strikes(2)
    assert len(plan) == 4 * len(BOUNDARIES)
    for boundary in BOUNDARIES:
        blows = [blow for (_, where), blow in plan.items() if where == boundary]
        assert sorted(blows) == ["kill", "kill", "move", "move"]
    assert planned_strikes(0) == {}
