"""Fire times of cron expressions: when clocks change, to the second, and which expressions are refused."""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given
from hypothesis import strategies as st

from actorhub.core.cron import CronExpression
from tests.cron.times import DAY, NOON, WHOLE_HOUR_ZONES, expressions, stamp, times


def upcoming(expression: str, zone: str, start: str, count: int) -> list[str]:
    """Return the next fire times after a local time, as local times with their offset."""
    found = islice(CronExpression(expression, zone).following(stamp(start, zone)), count)
    return [datetime.fromtimestamp(at, ZoneInfo(zone)).isoformat(timespec="minutes") for at in found]


SPRING = {
    "Europe/Berlin": "2026-03-29T00:00",
    "America/New_York": "2026-03-08T00:00",
    "Australia/Lord_Howe": "2026-10-04T00:00",
}
AUTUMN = {
    "Europe/Berlin": "2026-10-25T00:00",
    "America/New_York": "2026-11-01T00:00",
    "Australia/Lord_Howe": "2026-04-05T00:00",
}


@pytest.mark.parametrize(
    ("zone", "start", "expected"),
    [
        ("Europe/Berlin", "2026-03-28T00:00", ["2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00"]),
        ("America/New_York", "2026-03-07T00:00", ["2026-03-07T02:30-05:00", "2026-03-08T03:00-04:00"]),
        ("Australia/Lord_Howe", "2026-10-03T00:00", ["2026-10-03T02:30+10:30", "2026-10-04T02:30+11:00"]),
    ],
)
def test_a_time_that_does_not_exist_runs_at_the_first_minute_after_the_gap(
    zone: str, start: str, expected: list[str]
) -> None:
    """On the day when clocks go forward, 02:30 runs at 03:00; from the next day on it runs at 02:30 again."""
    following = upcoming("30 2 * * *", zone, start, 3)
    assert following[:2] == expected
    assert following[2][11:16] == "02:30"


@pytest.mark.parametrize(
    ("expression", "zone", "expected"),
    [
        ("15 2 * * *", "Australia/Lord_Howe", ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
        ("0,20,40 2 * * *", "Europe/Berlin", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
        ("0 2,3 * * *", "Europe/Berlin", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
    ],
)
def test_all_times_in_a_gap_run_once_after_it(expression: str, zone: str, expected: list[str]) -> None:
    """Skipped times run once, even if the first minute after the gap is a fire time itself."""
    assert upcoming(expression, zone, SPRING[zone], 2) == expected


@pytest.mark.parametrize(
    ("expression", "zone", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("30 1 * * *", "America/New_York", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
        ("45 1 * * *", "Australia/Lord_Howe", ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
    ],
)
def test_a_time_that_comes_twice_runs_the_first_time_only(expression: str, zone: str, expected: list[str]) -> None:
    """On the day when clocks go back, a time of day runs once."""
    assert upcoming(expression, zone, AUTUMN[zone], 2) == expected


def test_no_time_of_day_runs_in_the_second_of_two_equal_hours() -> None:
    """Asked within the second hour, the expression names a time after it, never one that lies in the past."""
    expression = CronExpression("50 2 * * *", "Europe/Berlin")
    inside = stamp("2026-10-25T02:45", "Europe/Berlin", again=True)
    assert expression.after(inside) == stamp("2026-10-26T02:50", "Europe/Berlin")
    assert expression.before(inside) == stamp("2026-10-25T02:50", "Europe/Berlin")


@pytest.mark.parametrize(("expression", "minutes"), [("*/30 * * * *", 30), ("0 * * * *", 60), ("*/5 * * * *", 5)])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("days", [SPRING, AUTUMN])
def test_schedules_within_the_hour_keep_their_pace_when_clocks_change(
    expression: str, minutes: int, zone: str, days: dict[str, str]
) -> None:
    """They follow the clock on the wall, which changes by a whole hour, so no run is skipped or repeated."""
    found = list(islice(CronExpression(expression, zone).following(stamp(days[zone], zone)), 400))
    assert {second - first for first, second in pairwise(found)} == {60 * minutes}


def test_a_half_hour_change_keeps_what_runs_every_half_hour_and_more_often() -> None:
    """On Lord Howe Island only the gap between full hours becomes half an hour longer or shorter."""
    zone = "Australia/Lord_Howe"
    for expression, minutes in (("*/30 * * * *", 30), ("*/5 * * * *", 5), ("30 * * * * *", 1)):
        for days in (SPRING, AUTUMN):
            found = list(islice(CronExpression(expression, zone).following(stamp(days[zone], zone)), 300))
            assert {second - first for first, second in pairwise(found)} == {60 * minutes}
    assert upcoming("0 * * * *", zone, AUTUMN[zone], 3) == [
        f"2026-04-05T0{at}" for at in ("1:00+11:00", "2:00+10:30", "3:00+10:30")
    ]
    assert upcoming("45 * * * *", zone, AUTUMN[zone], 4) == [
        f"2026-04-05T0{at}" for at in ("0:45+11:00", "1:45+11:00", "1:45+10:30", "2:45+10:30")
    ]
    assert upcoming("0 * * * *", zone, SPRING[zone], 2) == ["2026-10-04T01:00+10:30", "2026-10-04T03:00+11:00"]


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        ("0 0 3 * * *", SPRING, ["2026-10-04T03:00+11:00", "2026-10-05T03:00+11:00"]),
        ("*/30 3 * * *", SPRING, ["2026-10-04T03:00+11:00", "2026-10-04T03:30+11:00"]),
        ("*/5 2 * * *", AUTUMN, ["2026-04-05T02:00+10:30", "2026-04-05T02:05+10:30"]),
    ],
)
def test_full_hours_are_found_after_a_half_hour_change(
    expression: str, day: dict[str, str], expected: list[str]
) -> None:
    """Steps of whole hours would miss them for the rest of the day."""
    zone = "Australia/Lord_Howe"
    assert upcoming(expression, zone, day[zone], 2) == expected


def test_six_fields_follow_the_clock_on_the_wall() -> None:
    """A time with seconds does not run on a day without that time, and runs twice on a day that has it twice."""
    fields, zone = "0 30 2 * * *", "Europe/Berlin"
    assert upcoming(fields, zone, SPRING[zone], 1) == ["2026-03-30T02:30+02:00"]
    assert upcoming(fields, zone, AUTUMN[zone], 2) == ["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00"]


def test_a_day_that_does_not_begin_at_midnight_loses_no_time_of_day() -> None:
    """In Cairo 00:00 does not exist on that day: five fields run at 01:00, six do not run, whatever the start is."""
    zone = "Africa/Cairo"
    assert upcoming("0 0 * * *", zone, "2026-04-23T12:00", 1) == ["2026-04-24T01:00+03:00"]
    for start in ("2026-04-20T12:00", "2026-04-23T23:59"):
        assert upcoming("0 0 0 24,25 4 *", zone, start, 1) == ["2026-04-25T00:00+03:00"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * * *", ["12:00:01", "12:00:02", "12:00:03"]),
        ("*/10 * * * * *", ["12:00:10", "12:00:20", "12:00:30"]),
        ("30 0 12 * * *", ["12:00:30", "12:00:30", "12:00:30"]),
        ("5,59 59 * * * *", ["12:59:05", "12:59:59", "13:59:05"]),
    ],
)
def test_the_first_of_six_fields_is_seconds(expression: str, expected: list[str]) -> None:
    """With six fields a schedule can fire every second."""
    found = islice(CronExpression(expression).following(NOON), 3)
    assert [datetime.fromtimestamp(at, UTC).time().isoformat() for at in found] == expected


def test_every_second_is_every_second() -> None:
    """No second is missing, not even in an hour that occurs twice."""
    start = stamp("2026-10-25T02:00", "Europe/Berlin")
    found = list(islice(CronExpression("* * * * * *", "Europe/Berlin").following(start), 2 * 3600))
    assert found == [start + second for second in range(1, 2 * 3600 + 1)]


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ("*/7 * * * *", lambda at: at.second == 0 and at.minute % 7 == 0),
        ("*/10 * * * * *", lambda at: at.second % 10 == 0),
        ("15-17 */2 8-17 * * *", lambda at: 15 <= at.second < 18 and at.minute % 2 == 0 and 8 <= at.hour < 18),
        ("30 0 12 * * FRI", lambda at: (at.hour, at.minute, at.second) == (12, 0, 30) and at.weekday() == 4),
        ("5/20 6,18 28 NOV *", lambda at: (at.second, at.minute % 20, at.hour % 12, at.day) == (0, 5, 6, 28)),
        ("* * * * * SAT", lambda at: at.weekday() == 5),
    ],
)
def test_every_second_of_two_days_is_judged_as_by_hand(expression: str, matches: Callable[[datetime], bool]) -> None:
    """A second is a fire time if, and only if, its UTC time matches the fields."""
    start = stamp("2026-11-27T00:00")
    seconds = (datetime.fromtimestamp(start + second, UTC) for second in range(1, 2 * 86400 + 1))
    expected = [at.timestamp() for at in seconds if matches(at)]
    following = CronExpression(expression).following(start)
    assert [at for at in islice(following, len(expected) + 1) if at <= start + 2 * DAY] == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("@hourly", "2026-11-27T13:00:00"),
        ("@daily", "2026-11-28T00:00:00"),
        ("@midnight", "2026-11-28T00:00:00"),
        ("@weekly", "2026-11-29T00:00:00"),
        ("@monthly", "2026-12-01T00:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        (" @Annually ", "2027-01-01T00:00:00"),
        ("0 9 * * mon#1", "2026-12-07T09:00:00"),
        ("0 0 LW * *", "2026-11-30T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("0 0 1 * SUN", "2026-11-29T00:00:00"),
        ("0 0 * 2 MON#5", "2044-02-29T00:00:00"),
    ],
)
def test_aliases_names_and_rare_days_are_understood(expression: str, expected: str) -> None:
    """Each result is the time that a person with a calendar would name."""
    assert CronExpression(expression).after(NOON) == stamp(expected)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("61 * * * *", r"'61 \* \* \* \*': minute '61' is not within 0-59; write five fields such as '\*/5 8-18 "),
        ("61 * * * * *", r"second '61' is not within 0-59"),
        ("0 24 * * *", r"hour '24' is not within 0-23"),
        ("0 0 32 * *", r"day-of-month '32' is not within 1-31"),
        ("0 0 30 2 *", r"day-of-month '30' is not within 1-31, L or LW, or none of the months has that day"),
        ("0 0 31 APR,JUN *", r"day-of-month '31' is not"),
        ("0 0 1 13 *", r"month '13' is not within 1-12 or JAN-DEC"),
        ("0 0 * * MOX", r"day-of-week 'MOX' is not within 0-7 or SUN-SAT"),
        ("*/0 * * * *", r"minute '\*/0' is not"),
        ("* * * *", r"has 4 fields: write five fields such as .* or one of @hourly @daily"),
        ("* * * * * * *", r"has 7 fields"),
        ("", r"has 0 fields"),
        ("@reboot", r"'@reboot' has 1 fields"),
        ("* * */20 * 1L", r"matches no time within 50 years"),
    ],
)
def test_a_malformed_expression_is_refused_by_its_field(expression: str, text: str) -> None:
    """The error names the field, what is wrong with it, and an example."""
    with pytest.raises(ValueError, match=text):
        CronExpression(expression)


def test_an_expression_that_never_matches_in_its_zone_is_refused() -> None:
    """On the last Friday of April 00:00 never exists in Cairo."""
    with pytest.raises(ValueError, match="matches no time within 50 years"):
        CronExpression("0 0 0 * 4 5L", "Africa/Cairo")
    assert CronExpression("0 0 * 4 5L", "Africa/Cairo").after(NOON) == stamp("2027-04-30T01:00", "Africa/Cairo")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "", "../UTC", "/etc/passwd", "a\0b", "\udc80", "CEST+1"])
def test_an_unknown_time_zone_is_refused_by_name(zone: str) -> None:
    """The error quotes the name and says what a valid one looks like."""
    with pytest.raises(ValueError, match=r"timezone='.*' is unknown: write an IANA name such as 'Europe/Berlin'"):
        CronExpression("* * * * *", zone)


@given(expression=st.text("0123456789*/,-#LW MONFEB@\t", max_size=30) | st.text(max_size=30))
def test_any_text_is_an_expression_or_a_value_error(expression: str) -> None:
    """No text makes the parser fail in any other way."""
    try:
        parsed = CronExpression(expression)
    except ValueError:
        return
    assert parsed.after(NOON) is not None


@given(expression=expressions(), start=times())
def test_fire_times_are_whole_seconds_that_strictly_increase(expression: CronExpression, start: float) -> None:
    """Whatever clocks do, each fire time is later than the one before."""
    found = [start, *islice(expression.following(start), 30)]
    assert all(first < second for first, second in pairwise(found))
    assert all(at.is_integer() for at in found[1:])


@given(expression=expressions(), start=times(), share=st.floats(0, 1, exclude_max=True))
def test_the_next_fire_time_does_not_depend_on_the_start(
    expression: CronExpression, start: float, share: float
) -> None:
    """From any time between two fire times, the second one is the next."""
    for before, after in pairwise(islice(expression.following(start), 20)):
        assert expression.after(before) == after
        assert expression.after(before + share * (after - before - 0.001)) == after
        assert expression.after(after - 0.001) == after


@given(expression=expressions(), start=times())
def test_before_and_after_undo_each_other(expression: CronExpression, start: float) -> None:
    """The last fire time before a moment is earlier than it, and the one after that is not."""
    before = expression.before(start)
    assert before is not None
    assert before < start
    following = expression.after(before)
    assert following is not None
    assert following >= start
    assert expression.before(following) == before
    assert expression.before(before + 0.5) == before


@given(expression=expressions(WHOLE_HOUR_ZONES), start=times())
@example(CronExpression("30 2 * * *", "Europe/Berlin"), stamp("2026-03-28T12:00"))
def test_where_clocks_change_by_whole_hours_fire_times_are_those_of_cronsim(
    expression: CronExpression, start: float
) -> None:
    """Only the steps differ from cronsim, not the results."""
    zone = UTC if expression.timezone == "UTC" else ZoneInfo(expression.timezone)
    begin = expression.after(start) or start
    simulated = CronSim(expression.expression, datetime.fromtimestamp(begin, zone))
    expected = (at.timestamp() for at in simulated)
    later = list(islice((at for at in expected if at > begin), 20))
    assert list(islice(expression.following(begin), 20)) == later
