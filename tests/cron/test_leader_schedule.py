"""One schedule of a leader: what it makes of its row, of what operators write, and of what the code says."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from actorhub import Hub
from actorhub.core.cron import CronExpression, CronOptions
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.singletons.cron_schedule import CronSchedule
from actorhub.storage.singleton_ports import ScheduleRow
from tests.cron.diary import Stage
from tests.cron.times import HOUR, NOON, expressions, times


def _handler(hub: Hub) -> HandlerSpec:
    (spec,) = hub.specs.values()
    return spec.handlers["tick"]


def schedule(expression: str, row: ScheduleRow | None = None) -> CronSchedule:
    """Return a schedule called `tick` as the code declares it."""
    handler = _handler(Stage().declare(expression))
    (options,) = handler.crons
    return CronSchedule(handler, options, row, singleton="diary", now=NOON)


@given(expressions(), times(), st.integers(1, 5))
def test_a_schedule_has_every_fire_time_that_it_plans(expression: CronExpression, since: float, count: int) -> None:
    """A fire time that was stored under an expression is recognised as one of that expression."""
    fresh = schedule("0 0 1 1 *")
    fresh.options = CronOptions(expression=expression.expression, timezone=expression.timezone, name="tick")
    fresh.row = ScheduleRow(
        singleton="diary",
        name="tick",
        declared="",
        expression=expression.expression,
        timezone=expression.timezone,
        created_at=since,
    )
    for fire_time in islice(expression.following(since), count):
        assert fresh.has(fire_time)


def test_an_edit_that_meets_another_expression_in_the_code_is_kept() -> None:
    """The operator wrote while the leader of the new release had not: theirs is the younger one."""
    ours = schedule("0 * * * *")
    edited = ScheduleRow(
        singleton="diary",
        name="tick",
        declared="*/5 * * * *|UTC",
        expression="*/7 * * * *",
        timezone="UTC",
        created_at=NOON,
        edited=True,
        revision=1,
    )
    ours.merge(edited)
    assert (ours.row.expression, ours.row.edited, ours.row.declared) == ("*/7 * * * *", True, "0 * * * *|UTC")


def test_a_pause_that_meets_another_expression_in_the_code_does_not_bring_the_old_one_back() -> None:
    """What the operator paused goes on by the code."""
    ours = schedule("0 * * * *")
    old = ScheduleRow(
        singleton="diary",
        name="tick",
        declared="*/5 * * * *|UTC",
        expression="*/5 * * * *",
        timezone="UTC",
        created_at=NOON,
        paused=True,
        revision=1,
    )
    ours.merge(old)
    assert (ours.row.expression, ours.row.paused, ours.row.revision) == ("0 * * * *", True, 1)
    assert ours.planned(NOON + HOUR) is None
    assert ours.wakes_at(NOON + HOUR) is None


def test_a_schedule_without_further_fire_times_rests() -> None:
    """It asks for nothing more until somebody changes it."""
    ours = schedule("0 * * * *")
    assert ours.planned(NOON) is None
    assert ours.begin(NOON)
    planned = ours.planned(NOON)
    assert planned is not None
    assert ours.wakes_at(NOON) == NOON
    ours.advance(planned)
    assert not ours.begin(NOON)
    assert ours.wakes_at(NOON) == NOON + HOUR
    ours.advance(type(planned)(next_at=None))
    assert ours.wakes_at(NOON + HOUR) is None
    assert ours.planned(NOON + 2 * HOUR) is None
