"""What schedules do next: planning over downtime and clock steps, options, delays, health, and stored keys."""

import gc
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import islice
from time import process_time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actorhub.core.cron import (
    MAX_COUNTED,
    Breaker,
    CronExpression,
    CronOptions,
    CronPlan,
    Skipped,
    delivery_delay,
    expected_interval,
    fire_time_key,
    is_overdue,
    parse_fire_time_key,
    parse_run_now_key,
    plan,
    run_now_key,
)
from tests.cron.times import DAY, HOUR, NOON, TIMES, WEEK, expressions, stamp, times

HALF_HOURS = CronExpression("*/30 * * * *")


def planned(
    previous: float,
    now: float,
    *,
    expression: CronExpression = HALF_HOURS,
    from_previous: bool = False,
    age: float = DAY,
) -> CronPlan:
    return plan(expression, previous, now, skip_if_older_than=age, from_previous=from_previous)


@pytest.mark.parametrize("from_previous", [False, True])
def test_a_new_schedule_starts_with_the_next_fire_time(*, from_previous: bool) -> None:
    """A new schedule has missed nothing: it is planned from the present time."""
    assert planned(NOON, NOON, from_previous=from_previous) == CronPlan(next_at=NOON + 1800)


@pytest.mark.parametrize("from_previous", [False, True])
def test_nothing_is_skipped_on_time(*, from_previous: bool) -> None:
    """While nothing is late, a schedule goes from one fire time to the next."""
    assert planned(NOON, NOON + 3, from_previous=from_previous) == CronPlan(next_at=NOON + 1800)


def test_fire_times_that_passed_are_missed() -> None:
    """Fire times up to now are reported as missed, and the plan is the first one after now."""
    skipped = Skipped(reason="missed", count=2, first=NOON + 1800, last=NOON + HOUR, is_more=False)
    assert planned(NOON, NOON + HOUR) == CronPlan(next_at=NOON + HOUR + 1800, skipped=(skipped,))


def test_a_week_of_downtime_is_one_report_without_a_burst() -> None:
    """After a week the plan is the first fire time after now, and 336 are reported as missed."""
    skipped = Skipped(reason="missed", count=336, first=NOON + 1800, last=NOON + WEEK, is_more=False)
    assert planned(NOON, NOON + WEEK + 5) == CronPlan(next_at=NOON + WEEK + 1800, skipped=(skipped,))


def test_a_week_of_downtime_is_made_up_for_except_what_is_too_old() -> None:
    """Fire times older than a day are reported, and the plan is the oldest of the others."""
    skipped = Skipped(reason="too old", count=287, first=NOON + 1800, last=NOON + 6 * DAY - 1800, is_more=False)
    first = planned(NOON, NOON + WEEK, from_previous=True)
    assert first == CronPlan(next_at=NOON + 6 * DAY, skipped=(skipped,))
    assert planned(NOON + 6 * DAY, NOON + WEEK, from_previous=True) == CronPlan(next_at=NOON + 6 * DAY + 1800)


def test_a_fire_time_of_exactly_the_greatest_age_is_not_too_old() -> None:
    """Only what is older than a day is too old."""
    assert planned(NOON - 1800, NOON + DAY, from_previous=True) == CronPlan(next_at=NOON)
    late = planned(NOON - 1800, NOON + DAY + 0.001, from_previous=True)
    assert late.next_at == NOON + 1800
    assert [(skip.first, skip.count) for skip in late.skipped] == [(NOON, 1)]


@pytest.mark.parametrize("from_previous", [False, True])
def test_a_clock_that_steps_back_repeats_no_fire_time(*, from_previous: bool) -> None:
    """After the clock steps back an hour, the plan is still the fire time after the previous one."""
    assert planned(NOON, NOON - HOUR, from_previous=from_previous) == CronPlan(next_at=NOON + 1800)


def test_a_clock_that_steps_forward_by_an_hour_misses_what_it_steps_over() -> None:
    """A step forward is like downtime: fire times are reported, or made up for."""
    assert [skip.count for skip in planned(NOON, NOON + 2 + HOUR).skipped] == [2]
    assert planned(NOON, NOON + 2 + HOUR, from_previous=True) == CronPlan(next_at=NOON + 1800)


def test_counting_stops_at_a_limit() -> None:
    """Only the first thousand skipped fire times are counted, but the last one is always known."""
    seconds = CronExpression("* * * * * *")
    result = planned(NOON, NOON + WEEK + 0.5, expression=seconds)
    skipped = Skipped(reason="missed", count=MAX_COUNTED, first=NOON + 1, last=NOON + WEEK, is_more=True)
    assert result == CronPlan(next_at=NOON + WEEK + 1, skipped=(skipped,))
    assert not planned(NOON, NOON + MAX_COUNTED, expression=seconds).skipped[0].is_more
    assert planned(NOON, NOON + MAX_COUNTED + 1, expression=seconds).skipped[0].is_more


@pytest.mark.parametrize("from_previous", [False, True])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize(
    "expression",
    ["* * * * * *", "0,59 0,59 0,23 * * *", "59 59 23 * * *", "30 2 * * *", "0 0 * * MON#5", "0 0 29 2 *"],
)
def test_planning_is_fast_however_long_the_downtime_was(expression: str, zone: str, *, from_previous: bool) -> None:
    """After a week and after ten years it takes no longer than to walk over as many fire times as are counted."""
    parsed = CronExpression(expression, zone)
    for downtime in (WEEK, 3652 * DAY):
        since = NOON - downtime
        gc.collect()
        walk = partial(_walk, parsed, since)
        plan = partial(planned, since, NOON, expression=parsed, from_previous=from_previous)
        walks, plans = [_seconds(walk) for _ in range(3)], [_seconds(plan) for _ in range(3)]
        assert min(plans) < 2 * min(walks) + 0.005
        assert plan().next_at is not None


def _walk(expression: CronExpression, since: float) -> list[float]:
    return list(islice(expression.following(since), MAX_COUNTED))


def _seconds(work: Callable[[], object]) -> float:
    begin = process_time()
    work()
    return process_time() - begin


@given(expression=expressions(), walk=st.lists(st.floats(-3 * HOUR, 12 * HOUR), max_size=12), start=times())
@pytest.mark.parametrize("from_previous", [False, True])
def test_over_any_walk_of_the_clock_each_fire_time_comes_at_most_once(
    expression: CronExpression, walk: list[float], start: float, *, from_previous: bool
) -> None:
    """Planned fire times strictly increase, and each one is either planned or reported as skipped."""
    first = previous = expression.after(start)
    assert previous is not None
    now, seen = start, 1
    for step in walk:
        now += step
        result = planned(previous, now, expression=expression, from_previous=from_previous, age=4 * HOUR)
        assert result.next_at is not None
        assert result.next_at > previous
        for skip in result.skipped:
            assert previous < skip.first <= skip.last < result.next_at
            assert (skip.count > 1) == (skip.first < skip.last)
            seen += skip.count
            if skip.is_more:
                return
        seen += 1
        previous = result.next_at
    assert first is not None
    assert list(islice(expression.following(first - 1), seen))[-1] == previous


def test_a_breaker_opens_after_enough_failures_in_a_row_until_it_has_cooled_down() -> None:
    """Then one fire time is tried: another failure opens the breaker again, a success closes it."""
    breaker = Breaker(failures=3, cooldown=timedelta(minutes=1))
    assert not breaker.is_open(0, None, NOON)
    assert not breaker.is_open(2, NOON, NOON + 1)
    assert breaker.is_open(3, NOON, NOON + 59)
    assert not breaker.is_open(3, NOON, NOON + 60)
    assert breaker.is_open(4, NOON + 61, NOON + 62)
    assert not breaker.is_open(0, NOON + 61, NOON + 62)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"expression": "x"}, r"cron expression 'x' has 1 fields"),
        ({"timezone": "Mars"}, r"timezone='Mars' is unknown"),
        ({"skip_if_older_than": timedelta(0)}, r"skip_if_older_than=0:00:00 must be more than zero"),
        ({"overlap": "wait"}, r"overlap='wait' must be one of 'queue', 'skip', 'allow'"),
        ({"jitter": timedelta(seconds=-1)}, r"jitter=.* must not be negative"),
        ({"name": ""}, r"name='' must be a letter or digit"),
        ({"name": "a@b"}, r"name='a@b' must be"),
        ({"name": "x" * 101}, r"must be a letter or digit, then up to 99"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], text: str) -> None:
    """The error names the option, its value, and what is allowed."""
    with pytest.raises(ValueError, match=text):
        CronOptions(**{"expression": "@daily", **settings})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"failures": 0}, r"Breaker: failures=0 must be at least 1"),
        ({"cooldown": timedelta(0)}, r"Breaker: cooldown=0:00:00 must be more than zero"),
    ],
)
def test_a_breaker_that_makes_no_sense_is_refused(settings: dict[str, Any], text: str) -> None:
    """The error names the setting, its value, and what is allowed."""
    with pytest.raises(ValueError, match=text):
        Breaker(**settings)


def test_a_delivery_delay_is_the_same_in_every_release() -> None:
    """A message that is stored again must be due at the same time."""
    assert delivery_delay("sweep", NOON, 60) == pytest.approx(52.0889088430)
    assert delivery_delay("sweep", NOON + 1, 60) != delivery_delay("sweep", NOON, 60)
    assert delivery_delay("other", NOON, 60) != delivery_delay("sweep", NOON, 60)


@given(schedule=st.text(st.characters(codec="utf-8")), fire_time=TIMES.map(round), jitter=st.floats(1e-6, 1e9))
def test_a_delivery_delay_is_shorter_than_the_jitter(schedule: str, fire_time: int, jitter: float) -> None:
    """The delay lies in [0, jitter), and is zero without jitter."""
    assert 0 <= delivery_delay(schedule, fire_time, jitter) < jitter
    assert delivery_delay(schedule, fire_time, 0) == 0


def test_delivery_delays_are_spread_evenly() -> None:
    """The delays of a thousand fire times fill each tenth of the jitter about equally."""
    tenths = [int(delivery_delay("sweep", NOON + 60 * minute, 10)) for minute in range(1000)]
    assert all(60 < tenths.count(tenth) < 140 for tenth in range(10))


def test_the_expected_interval_is_the_one_that_follows() -> None:
    """The interval varies if the expression is uneven, and where clocks change."""
    office = CronExpression("0 9-17 * * *")
    assert expected_interval(office, stamp("2026-11-27T16:00")) == HOUR
    assert expected_interval(office, stamp("2026-11-27T17:00")) == 16 * HOUR
    berlin = CronExpression("0 12 * * *", "Europe/Berlin")
    assert expected_interval(berlin, stamp("2026-10-24T12:00", "Europe/Berlin")) == 25 * HOUR


def test_a_schedule_is_overdue_when_nothing_ran_for_twice_its_interval() -> None:
    """One fire time may be late, but once the next one has passed too, the schedule is overdue."""
    assert not is_overdue(HALF_HOURS, NOON, 0, NOON + HOUR)
    assert is_overdue(HALF_HOURS, NOON, 0, NOON + HOUR + 1)


def test_a_schedule_that_never_ran_is_judged_from_its_creation() -> None:
    """Its first fire time is overdue one interval later, even if it came a second after the creation."""
    for created in (NOON, NOON + 1799):
        assert not is_overdue(HALF_HOURS, None, created, NOON + HOUR)
        assert is_overdue(HALF_HOURS, None, created, NOON + HOUR + 1)


def test_the_key_of_a_fire_time_is_the_same_in_every_release() -> None:
    """The key is stored: a different one would run a fire time again after an upgrade."""
    at = stamp("2026-11-27T12:30")
    assert fire_time_key("sweep", at, 0) == "cron:sweep@2026-11-27T12:30:00Z#0"
    assert fire_time_key("sweep", at, 12) == "cron:sweep@2026-11-27T12:30:00Z#12"


@given(
    schedule=st.text(min_size=1), fire_time=TIMES.map(lambda at: float(round(at))), revision=st.integers(0, 10**18 - 1)
)
@example("a@2026-01-01T00:00:00Z#1", NOON, 7)
@example("a\nb", NOON, 7)
def test_the_key_of_a_fire_time_is_read_back(schedule: str, fire_time: float, revision: int) -> None:
    """Schedule, fire time and revision come out as they went in."""
    assert parse_fire_time_key(fire_time_key(schedule, fire_time, revision)) == (schedule, fire_time, revision)
    assert parse_run_now_key(run_now_key(schedule, revision)) == schedule
    assert parse_fire_time_key(run_now_key(schedule, revision)) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "o-1",
        "cron:sweep",
        "cron:@2026-11-27T12:30:00Z#0",
        "cron:sweep@2026-13-27T12:30:00Z#0",
        "cron:sweep@2026-11-27T12:30:00#0",
        "cron:sweep@2026-11-27T12:30:00Z",
        "cron:sweep@2026-11-27T12:30:00Z#01",
        "cron:sweep@2026-11-27T12:30:00Z#-1",
        "cron:sweep@2026-11-27T12:30:00Z#1 ",
        "cron:sweep@٢٠٢٦-11-27T12:30:00Z#1",
    ],
)
def test_keys_of_users_are_not_taken_for_keys_of_fire_times(key: str) -> None:
    """A key that a user chose does not parse as the key of a fire time."""
    assert parse_fire_time_key(key) is None
