"""Schedules and time: changes of clocks, downtimes, steps of the clock, gaps, and every single second."""

import asyncio
from datetime import timedelta

import pytest

from actorhub.core.cron import delivery_delay
from actorhub.storage.message_ports import MessageFilter
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.cron.diary import (
    BEFORE_NOON,
    DAY,
    HOUR,
    JUST,
    MINUTE,
    NOON,
    Stage,
    at_time,
    comes,
    idle,
    moment,
    planned,
    ran,
    row,
    written,
)
from tests.cron.times import stamp

_noon = NOON.timestamp()


@pytest.fixture
def stage() -> Stage:
    """The schedule of a test."""
    return Stage()


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that shows that it is nearly noon."""
    return SteppedClock(BEFORE_NOON)


async def _next(memory: MemoryCluster, at: float) -> None:
    """See the fire time planned, the clock set just before it, and its run committed."""
    await comes(memory, at)
    await until(lambda: written(memory)[-1:] == [at], f"the run of {moment(at)}")


async def test_an_every_second_schedule_runs_every_second(stage: Stage) -> None:
    """Each fire time once, on its second and never before it, one after the other."""
    clock = SteppedClock()
    late: list[float] = []

    async def note(at: float) -> None:
        late.append(clock.time() - at)

    stage.act = note
    async with MemoryCluster(stage.declare("* * * * * *"), clock=clock) as memory:
        await memory.start_runner()
        await until(lambda: len(written(memory)) >= 5, "five runs")
        found = written(memory)
    assert found == [found[0] + number for number in range(len(found))]
    assert stage.began[: len(found)] == found
    assert 0 <= min(late) <= max(late) < 0.5


_SPRING = "2026-03-29T"
_AUTUMN = "2026-10-25T"


@pytest.mark.parametrize(
    ("expression", "start", "fire_times"),
    [
        ("30 2 * * *", "2026-03-28T02:29:10", ["2026-03-28T02:30", f"{_SPRING}03:00", "2026-03-30T02:30"]),
        ("0 30 2 * * *", "2026-03-28T02:29:10", ["2026-03-28T02:30", "2026-03-30T02:30"]),
        ("*/30 * * * *", f"{_SPRING}01:29:10", [f"{_SPRING}01:30", f"{_SPRING}03:00", f"{_SPRING}03:30"]),
        ("0 * * * *", f"{_SPRING}00:59:10", [f"{_SPRING}01:00", f"{_SPRING}03:00", f"{_SPRING}04:00"]),
        ("30 2 * * *", f"{_AUTUMN}02:29:10", [f"{_AUTUMN}02:30", "2026-10-26T02:30"]),
        (
            "*/30 * * * *",
            f"{_AUTUMN}02:29:10",
            [f"{_AUTUMN}02:30", f"{_AUTUMN}02:00 again", f"{_AUTUMN}02:30 again", f"{_AUTUMN}03:00"],
        ),
        ("0 * * * *", f"{_AUTUMN}01:59:10", [f"{_AUTUMN}02:00", f"{_AUTUMN}02:00 again", f"{_AUTUMN}03:00"]),
    ],
)
async def test_schedules_go_through_a_change_of_clocks(
    stage: Stage, clock: SteppedClock, expression: str, start: str, fire_times: list[str]
) -> None:
    """In Berlin, on the days on which an hour does not exist and on which one comes twice."""
    clock.set(moment(stamp(start, "Europe/Berlin")))
    expected = [
        stamp(text.removesuffix(" again"), "Europe/Berlin", again=text.endswith("again")) for text in fire_times
    ]
    async with MemoryCluster(stage.declare(expression, timezone="Europe/Berlin"), clock=clock) as memory:
        await memory.start_runner()
        for at in expected:
            await _next(memory, at)
        await ran(memory, *expected)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_after_a_week_of_downtime_one_run_is_late_and_the_rest_is_skipped(
    stage: Stage, clock: SteppedClock, end: str
) -> None:
    """The fire time whose message was stored runs, since it is young enough; the others are counted with their span."""
    hub = stage.declare("0 * * * *", skip_if_older_than=timedelta(days=8))
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + HOUR)
        await getattr(memory, end)(runner)
        clock.step(timedelta(days=7, minutes=30))
        await memory.start_runner()
        await planned(memory, _noon + 169 * HOUR)
        await ran(memory, _noon, _noon + HOUR)
        assert row(memory).skipped == 167
        assert row(memory).last_skip == "missed: 2026-11-27T14:00:00Z to 2026-12-04T12:00:00Z"
        await _next(memory, _noon + 169 * HOUR)


async def test_a_fire_time_that_is_too_old_is_skipped_and_counted(stage: Stage, clock: SteppedClock) -> None:
    """After a week of downtime the stored one is older than a day, so nothing runs before the next one to come."""
    async with MemoryCluster(stage.declare("0 * * * *", skip_if_older_than=timedelta(days=1)), clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + HOUR)
        await memory.stop(runner)
        clock.step(timedelta(days=7, minutes=30))
        await memory.start_runner()
        await planned(memory, _noon + 169 * HOUR)
        await until(lambda: row(memory).skipped == 168, "168 skipped fire times")
        await ran(memory, _noon)


async def test_from_previous_makes_up_for_what_is_not_too_old(stage: Stage, clock: SteppedClock) -> None:
    """After a week the last day's fire times run, in order; those before it are skipped and counted."""
    hub = stage.declare("0 * * * *", skip_if_older_than=timedelta(days=1), from_previous=True)
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + HOUR)
        await memory.stop(runner)
        clock.step(timedelta(days=7, minutes=30))
        await memory.start_runner()
        await planned(memory, _noon + 169 * HOUR)
        await until(lambda: row(memory).skipped == 144, "144 skipped fire times")
        await ran(memory, _noon, *(_noon + number * HOUR for number in range(145, 169)))


@pytest.mark.parametrize("overlap", ["queue", "skip", "allow"])
async def test_what_is_made_up_for_runs_in_order_after_the_stored_fire_time(
    stage: Stage, clock: SteppedClock, overlap: str
) -> None:
    """However fire times overlap otherwise: none of them is skipped for the one that is made up for before it."""
    async with MemoryCluster(stage.declare("0 * * * *", from_previous=True, overlap=overlap), clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + HOUR)
        await memory.kill(runner)
        clock.step(timedelta(hours=20, minutes=30))
        await memory.start_runner()
        await planned(memory, _noon + 21 * HOUR)
        await ran(memory, *(_noon + number * HOUR for number in range(21)))
        assert row(memory).skipped == 0


@pytest.mark.parametrize("overlap", ["queue", "skip", "allow"])
async def test_a_gap_of_seconds_is_made_up_for(stage: Stage, clock: SteppedClock, overlap: str) -> None:
    """A takeover that takes three seconds costs an every-second schedule nothing."""
    async with MemoryCluster(stage.declare("* * * * * *", overlap=overlap), clock=clock) as memory:
        runner = await memory.start_runner()
        await until(lambda: len(written(memory)) >= 1, "a run")
        await memory.kill(runner)
        clock.step(timedelta(seconds=3))
        await memory.start_runner()
        await until(lambda: len(written(memory)) >= 7, "seven runs")
        found = written(memory)
        assert found == [found[0] + number for number in range(len(found))]
        assert row(memory).skipped == 0


async def test_a_gap_of_more_than_a_minute_is_a_downtime(stage: Stage, clock: SteppedClock) -> None:
    """An every-second schedule goes on with the next second, and says that it left out thousands."""
    async with MemoryCluster(stage.declare("* * * * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        await until(lambda: len(written(memory)) >= 1, "a run")
        await memory.kill(runner)
        clock.step(timedelta(hours=1))
        await memory.start_runner()
        await until(lambda: written(memory)[-1] > _noon + HOUR - MINUTE, "a run an hour later")
        found = written(memory)
        late = next(at for at in found if at > _noon + HOUR - MINUTE)
        before = found[: found.index(late)]
        assert before == [found[0] + number for number in range(len(before))]
        assert len(before) <= 4
        assert row(memory).skipped == 1000
        assert row(memory).last_skip.startswith("missed, more than 1000: 2026-11-27T11:59:1")


async def test_a_clock_that_steps_forward_skips_what_it_left_out(stage: Stage, clock: SteppedClock) -> None:
    """The stored fire time runs, an hour of others is skipped and counted, and the chain goes on by the new time."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + MINUTE)
        clock.step(timedelta(hours=1))
        await runner.poll_storage()
        await planned(memory, _noon + 61 * MINUTE)
        await ran(memory, _noon, _noon + MINUTE)
        assert row(memory).skipped == 59
        await _next(memory, _noon + 61 * MINUTE)


async def test_a_clock_that_steps_forward_is_made_up_for_where_that_is_wanted(
    stage: Stage, clock: SteppedClock
) -> None:
    """With from_previous each minute of the hour has its run, in order."""
    async with MemoryCluster(stage.declare("* * * * *", from_previous=True), clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + MINUTE)
        clock.step(timedelta(hours=1))
        await runner.poll_storage()
        await planned(memory, _noon + 61 * MINUTE)
        await ran(memory, *(_noon + number * MINUTE for number in range(61)))


async def test_no_fire_time_runs_again_after_a_clock_stepped_back(stage: Stage, clock: SteppedClock) -> None:
    """For an hour that came before nothing runs; then the chain goes on where it was, each fire time once."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        await _next(memory, _noon)
        await _next(memory, _noon + MINUTE)
        await planned(memory, _noon + 2 * MINUTE)
        clock.step(timedelta(hours=-1))
        await runner.poll_storage()
        await memory.kill(runner)
        runner = await memory.start_runner()
        for _ in range(3):
            clock.step(timedelta(minutes=15))
            await runner.poll_storage()
            await until(lambda: row(memory).next_at == _noon + 2 * MINUTE, "the plan as it was")
        await _next(memory, _noon + 2 * MINUTE)
        await _next(memory, _noon + 3 * MINUTE)
        await ran(memory, *(_noon + number * MINUTE for number in range(4)))
        assert stage.began == written(memory)
        assert row(memory).skipped == 0


async def test_a_clock_that_steps_back_just_before_a_fire_time_delays_it(stage: Stage, clock: SteppedClock) -> None:
    """The leader still believes the old time, but the store does not let the run start early."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await memory.start_runner()
        await _next(memory, _noon)
        await planned(memory, _noon + MINUTE)
        await at_time(memory, moment(_noon + MINUTE) - timedelta(milliseconds=100))
        clock.step(timedelta(hours=-1))
        await asyncio.sleep(0.5)
        assert stage.began == [_noon]
        await at_time(memory, moment(_noon + MINUTE) - JUST)
        await until(lambda: len(written(memory)) == 2, "the delayed run", deadline=20)
        await ran(memory, _noon, _noon + MINUTE)


@pytest.mark.parametrize("by", [timedelta(hours=1), timedelta(hours=-1)])
async def test_every_second_survives_steps_of_the_clock(stage: Stage, clock: SteppedClock, by: timedelta) -> None:
    """Whatever the clock does, no fire time runs twice, and they run in order."""
    async with MemoryCluster(stage.declare("* * * * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        await until(lambda: len(written(memory)) >= 2, "two runs")
        clock.step(by)
        await runner.poll_storage()
        await asyncio.sleep(0.2)
        clock.step(-by)
        await runner.poll_storage()
        top = max(at for at in stage.began)
        await at_time(memory, moment(max(top, _noon + 2 * HOUR)))
        await until(lambda: written(memory)[-1] > _noon + 2 * HOUR, "a run long after", deadline=20)
        found = written(memory)
        assert found == sorted(set(found))
        assert len(stage.began) == len(set(stage.began))


async def test_jitter_delays_each_fire_time_by_its_own_time(stage: Stage, clock: SteppedClock) -> None:
    """The message is due that much later, whoever stores it; not even one beyond `skip_if_older_than` is too old."""
    hub = stage.declare("* * * * *", jitter=timedelta(seconds=50), skip_if_older_than=timedelta(milliseconds=500))
    delays = [delivery_delay("tick", _noon + number * MINUTE, 50) for number in range(3)]
    assert min(delays) >= 0.5
    async with MemoryCluster(hub, clock=clock) as memory:
        await memory.start_runner()
        for number, delay in enumerate(delays):
            at = _noon + number * MINUTE
            await planned(memory, at)
            (message,) = memory.store.messages.messages(
                MessageFilter(key=f"cron:tick@{moment(at):%Y-%m-%dT%H:%M:%SZ}#0")
            )
            assert message.deliver_at == pytest.approx(at + delay)
            await at_time(memory, moment(at + delay) - JUST)
            await until(lambda: len(written(memory)) > number, "a run")  # noqa: B023 - awaited right here
        await idle(memory)
        assert written(memory) == [_noon + number * MINUTE for number in range(3)]
        assert row(memory).skipped == 0


async def test_a_daily_schedule_survives_a_year_of_steps(stage: Stage, clock: SteppedClock) -> None:
    """Day after day by steps of the clock, with a new runner every week: each day once."""
    async with MemoryCluster(stage.declare("0 12 * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        for day in range(30):
            await _next(memory, _noon + day * DAY)
            if day % 7 == 6:
                await until(lambda: row(memory).runs == day + 1, "the count in the row")  # noqa: B023 - awaited right here
                await memory.kill(runner)
                runner = await memory.start_runner()
        await ran(memory, *(_noon + day * DAY for day in range(30)))
        await until(lambda: row(memory).runs == 30, "the count in the row")
