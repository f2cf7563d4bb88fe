"""Schedules on a real Postgres and real gRPC: every second across hand-overs and restarts, edits, and crowds."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from actorhub import Cluster, Hub
from actorhub.core.clock import SystemClock
from actorhub.cron import cron
from actorhub.storage.singleton_ports import ScheduleEdit, ScheduleRow
from tests.cron.diary import Diary, Stage
from tests.support.parts import runner_of
from tests.support.postgres_server import PostgresServer

_clock = SystemClock()


@pytest.fixture
def stage() -> Stage:
    """The schedule of a test."""
    return Stage()


@asynccontextmanager
async def _runner(hub: Hub, url: str) -> AsyncGenerator[Cluster, None]:
    async with hub.runner(
        database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=timedelta(seconds=2)
    ) as runner:
        yield runner


async def _read(cluster: Cluster, stage: Stage, count: int) -> list[float]:
    """Return the fire times that ran once there are so many."""
    found: list[float] = []
    async with asyncio.timeout(30):
        while len(found := await cluster.singleton(stage.singleton).read()) < count:
            await asyncio.sleep(0.05)
    return found


async def _row(url: str, **expected: object) -> ScheduleRow:
    """Return the schedule's row, once it says what is expected."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(20):
            while True:
                found = await connection.fetchrow("select * from actorhub.cron_schedule where name = 'tick'")
                if found is not None and all(found[name] == value for name, value in expected.items()):
                    return ScheduleRow(**dict(found))
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


def _assert_each_second_once(fire_times: list[float]) -> None:
    assert fire_times == [fire_times[0] + number for number in range(len(fire_times))], fire_times


async def test_an_every_second_schedule_runs_on_through_hand_overs(stage: Stage, postgres_url: str) -> None:
    """Runners come and go, each second runs once, on time while one leads, and the row has the counts."""
    late: list[float] = []

    async def note(at: float) -> None:
        late.append(_clock.time() - at)

    stage.act = note
    hub = stage.declare("* * * * * *")
    async with _runner(hub, postgres_url) as first:
        assert max(await _read(first, stage, 3)) == stage.began[-1]
        async with _runner(hub, postgres_url) as second:
            count = len(await _read(second, stage, 5))
            await _read(first, stage, count + 2)
        found = await _read(first, stage, count + 4)
        assert min(late) >= -0.001
        assert sorted(late)[len(late) // 2] < 0.2
        row = await _row(postgres_url, skipped=0, failures=0)
    assert (await _row(postgres_url)).runs >= row.runs >= len(found) - 1
    _assert_each_second_once(found)
    assert len(stage.began) == len(set(stage.began))


async def test_an_every_second_schedule_survives_restarts_of_the_database(
    stage: Stage, own_postgres: PostgresServer
) -> None:
    """It crashes twice and is away for two seconds: every second has its run, and exactly one is committed."""
    url = await own_postgres.create_database()
    async with _runner(stage.declare("* * * * * *"), url) as runner:
        await _read(runner, stage, 2)
        await own_postgres.restart("immediate")
        await _read(runner, stage, 5)
        await own_postgres.stop("immediate")
        await asyncio.sleep(2)
        await own_postgres.start()
        # A run whose commit failed comes again after a pause, and others run meanwhile.
        found = await _read(runner, stage, 9)
        whole = [found[0] + number for number in range(len(found))]
        async with asyncio.timeout(30):
            while not set(whole) <= set(found := await _read(runner, stage, 9)):
                await asyncio.sleep(0.05)
        assert len(found) == len(set(found)), found
        assert (await _row(url)).skipped == 0


async def test_schedules_are_edited_while_they_run(stage: Stage, postgres_url: str) -> None:
    """Paused it rests, set it has its new fire times, reset it goes back; the revision grows each time."""
    async with _runner(stage.declare("* * * * * *"), postgres_url) as runner:
        store = runner_of(runner).storage.singletons

        async def edit(change: ScheduleEdit) -> None:
            assert await store.edit_schedule("diary", "tick", change) is not None
            await runner.poll_storage()

        await _read(runner, stage, 2)
        await edit(ScheduleEdit(paused=True))
        await _row(postgres_url, revision=1, next_at=None)
        await asyncio.sleep(1.2)
        count = len(stage.began)
        await asyncio.sleep(1.5)
        assert len(stage.began) == count
        await edit(ScheduleEdit(paused=False, expression="*/2 * * * * *"))
        found = await _read(runner, stage, count + 2)
        assert {int(at) % 2 for at in found[count:]} == {0}
        await edit(ScheduleEdit(reset=True))
        row = await _row(postgres_url, revision=3, edited=False)
        found = await _read(runner, stage, len(found) + 3)
        _assert_each_second_once(found[-2:])
        assert row.expression == "* * * * * *"
        assert len(found) == len(set(found))


def _scheduled(number: int, expression: str) -> object:
    @cron(expression)
    async def tick(self: Diary, at: datetime) -> None:
        self.state.append(float(number))

    return tick


async def test_two_hundred_schedules_that_are_due_at_once_all_run(stage: Stage, postgres_url: str) -> None:
    """Each once, and within seconds of their fire time."""
    due = datetime.fromtimestamp(_clock.time() + 8, UTC)
    expression = f"{due.second} {due.minute} {due.hour} * * *"
    methods = {f"tick{number}": _scheduled(number, expression) for number in range(200)}
    stage.singleton = type("Many", (Diary,), methods, name="diary")
    hub = Hub()
    hub.register(stage.singleton)
    async with _runner(hub, postgres_url) as runner:
        found = await _read(runner, stage, 200)
        took = _clock.time() - due.timestamp()
        assert sorted(found) == list(range(200))
        assert took < 6
