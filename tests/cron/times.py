"""Cron expressions and times for tests: any legal ones, often near a change of clocks."""

from collections.abc import Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from actorhub.core.cron import CronExpression

HOUR, DAY, WEEK = 3600.0, 86400.0, 7 * 86400.0
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
WHOLE_HOUR_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
ZONES = (*WHOLE_HOUR_ZONES, "Australia/Lord_Howe", "Africa/Cairo", "America/Havana", "Antarctica/Troll")
TIMES = st.floats(datetime(2015, 1, 1, tzinfo=UTC).timestamp(), datetime(2060, 1, 1, tzinfo=UTC).timestamp())


def terms(lowest: int, highest: int) -> st.SearchStrategy[str]:
    """One field: any, every n-th, a range, or a list."""
    number = st.integers(lowest, highest)
    return st.one_of(
        st.just("*"),
        st.integers(1, highest).map("*/{}".format),
        st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}"),
        st.lists(number.map(str), min_size=1, max_size=3).map(",".join),
    )


TIME_OF_DAY = st.tuples(terms(0, 59), terms(0, 23)).map(" ".join)
DATE = st.sampled_from(["* * *", "* * *", "* * MON-FRI", "1,15 * *", "L * *", "* 3,4,10,11 SUN", "29 2 *", "* * SUN#1"])
SECONDS = st.just("") | terms(0, 59).map("{} ".format)


@st.composite
def expressions(draw: st.DrawFn, zones: Iterable[str] = ZONES) -> CronExpression:
    """Legal expressions of five and six fields, in zones whose clocks change in every way."""
    fields = f"{draw(SECONDS)}{draw(TIME_OF_DAY)} {draw(DATE)}"
    return CronExpression(fields, draw(st.sampled_from(tuple(zones))))


@st.composite
def times(draw: st.DrawFn) -> float:
    """Any time, often one within hours of a change of clocks somewhere."""
    change = st.sampled_from(
        [
            *("2026-03-29T01", "2026-10-25T01", "2026-03-08T07", "2026-11-01T06", "2026-10-03T15", "2026-04-04T15"),
            *("2026-04-23T22", "2026-10-29T21", "2026-03-08T05", "2026-11-01T05"),
        ]
    ).map(lambda text: datetime.fromisoformat(f"{text}:00+00:00").timestamp())
    return draw(TIMES | st.builds(lambda at, by: at + by, change, st.integers(-5 * 3600, 5 * 3600)))


def stamp(local: str, zone: str = "UTC", *, again: bool = False) -> float:
    """Return the moment of a local time; `again`: the second one of an hour that comes twice."""
    return datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone), fold=again).timestamp()
