"""Cron arithmetic as pure functions: a schedule's fire times, the next one, and the ones that are skipped.

A fire time is a whole number of seconds since the Unix epoch. Like every time in this module it is a float.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from cronsim.cronsim import is_imaginary

from actorhub.core.option_types import check_duration, check_record
from actorhub.core.retry import DEFAULT_RETRY, Retry

Overlap: TypeAlias = Literal["queue", "skip", "allow"]
"""What happens at a fire time while an earlier run has not ended: the run waits, is skipped, or starts beside it."""

MAX_COUNTED: Final = 1000
"""Skipped fire times are counted up to this number."""

_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_ALLOWED: Final = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L or LW, or none of the months has that day",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 or SUN-SAT, each also with L or #1 to #5",
}
"""Keyed by the field names in cronsim's errors, in the order of the fields."""
_ENDS: Final = {
    "second": ("0", "59"),
    "minute": ("0", "59"),
    "hour": ("0", "23"),
    "day-of-month": ("1", "31"),
    "month": ("1", "12"),
    "day-of-week": ("0", "6"),
}
"""The first and the last value of each field."""
_NAMED_ENDS: Final = {"month": ("JAN", "DEC"), "day-of-week": ("SUN", "SAT")}
_GRAMMAR: Final = "write five fields such as '*/5 8-18 * * MON-FRI', six with seconds first, or one of " + " ".join(
    _ALIASES
)
_REFERENCE: Final = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""A new expression must match within 50 years of this date, which is fixed so that all runners judge alike."""
_NAME: Final = re.compile(r"\w[\w.-]{0,99}")
_KEY: Final = re.compile(r"cron:(.+)@(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)#(0|[1-9]\d{0,17})", re.ASCII | re.DOTALL)
_NOW_KEY: Final = re.compile(r"now:(.+)#\d+", re.ASCII | re.DOTALL)


class CronExpression(msgspec.Struct, frozen=True):
    """The fire times of a cron expression in a time zone. The rules are those of cronsim, which follows Debian's cron.

    An expression has five fields (minute, hour, day of month, month, day of week), or six with seconds *first*, or is
    one of `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` and `@annually`. If the day of month or
    the day of week starts with `*`, both of them must match; otherwise it is enough that one of them does.

    When clocks change, what happens depends on the kind of expression. Five fields whose minute and hour do not start
    with `*` name times of day. A time that the clock skips (02:30 on a day when it goes from 02:00 to 03:00) runs at
    the first minute after the gap, once for all times in the gap. A time that occurs twice runs the first time only.
    All other expressions follow the clock on the wall: a skipped time does not run, and a repeated time runs twice. So
    `*/30 * * * *` and `0 * * * *` keep running every half hour and every hour, and `0 30 2 * * *`, which has six
    fields, differs from `30 2 * * *`.

    Args:
        expression: As above. Letters may be upper or lower case.
        timezone: IANA name.

    Raises:
        ValueError: The expression is malformed or never matches, or the time zone is unknown. The text says which, and
            what to write instead.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        try:
            _zone(self.timezone)
        except (KeyError, OSError, ValueError):  # raised for an unknown name, a folder and a path
            raise ValueError(
                f"timezone={self.timezone!r} is unknown: write an IANA name such as 'Europe/Berlin', or 'UTC'; "
                "if the system has no time zone database, install the package tzdata"
            ) from None
        try:
            first = self.after(_REFERENCE)
        except CronSimError as exc:
            raise ValueError(_complaint(self.expression, str(exc).removeprefix("Bad "))) from None
        if first is None:
            raise ValueError(f"cron expression {self.expression!r} matches no time within 50 years: {_GRAMMAR}")

    def following(self, moment: float) -> Iterator[float]:
        """Yield the fire times after `moment`, strictly increasing, until there is none for 50 years."""
        last = float(math.floor(moment))
        for found in self._simulate(last):
            # In an hour that occurs twice, cronsim finds a time of day again, which would lie in the past.
            if (stamp := found.timestamp()) > last:
                yield stamp
                last = stamp

    def after(self, moment: float) -> float | None:
        """Return the first fire time strictly after `moment`, or `None` if there is none within 50 years."""
        return next(self.following(moment), None)

    def before(self, moment: float) -> float | None:
        """Return the last fire time strictly before `moment`, or `None` if there is none within 50 years."""
        for found in self._simulate(float(math.ceil(moment)), reverse=True):
            # Going backwards, cronsim can miss fire times in an hour that occurs twice. So look forward from here.
            last = None
            for stamp in self.following(found.timestamp() - 1):
                if stamp >= moment:
                    break
                last = stamp
            if last is not None:
                return last
        return None

    def _simulate(self, moment: float, *, reverse: bool = False) -> CronSim:
        fields = _ALIASES.get(self.expression.strip().lower(), self.expression)
        return _Simulation(fields, datetime.fromtimestamp(moment, _zone(self.timezone)), reverse=reverse)


class _Simulation(CronSim):
    """cronsim, except that a local hour may begin or end at any minute.

    cronsim steps by 3600 seconds from one full hour to the next. Where clocks change by half an hour (Lord Howe), it
    then misses every full hour for the rest of the day, and with it perhaps a daily job. This class steps straight to
    the next value that matches. That also bounds how long it takes to count fire times.
    """

    def advance_hour(self) -> bool:
        if self.fixup_tz is None and self.dt.hour == 0 and is_imaginary(self.dt):
            # cronsim starts every day at midnight, even a day whose first hour does not exist.
            self.dt = self.dt.astimezone(UTC).astimezone(self.dt.tzinfo)
            return True
        if (hour := self.dt.hour) in self.hours:
            return False
        # Clocks change by less than three hours, so a step that ends three hours early cannot jump over the target.
        hours = max(1, _first_above(hour, self.hours, 24) - hour - 3)
        self.tick(3600 * hours - 60 * self.dt.minute - self.dt.second)
        return True

    def advance_minute(self) -> bool:
        if (minute := self.dt.minute) in self.minutes:
            return False
        self.tick(60 * (_first_above(minute, self.minutes, 60) - minute) - self.dt.second)
        return True

    def advance_second(self) -> bool:
        if (second := self.dt.second) in self.seconds:
            return False
        self.tick(_first_above(second, self.seconds, 60) - second)
        return True


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """A circuit breaker: after several failures in a row, a schedule skips its fire times for a while.

    The breaker opens after `failures` fire times in a row have failed for good. While it is open, fire times are
    skipped and counted. After `cooldown` the next fire time runs. If that run succeeds, the breaker closes; if it
    fails, the breaker stays open for another `cooldown`.

    Args:
        failures: How many failures in a row open the breaker.
        cooldown: How long it stays open after the last failure.

    Raises:
        TypeError: A value is of another type. The text names it.
        ValueError: A value is out of range. The text names it.
    """

    failures: int = 5
    cooldown: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        check_record("Breaker", self)
        if self.failures < 1:
            raise ValueError(f"Breaker: failures={self.failures} must be at least 1")
        check_duration("Breaker: cooldown", self.cooldown)

    def is_open(self, failures_in_a_row: int, last_failure_at: float | None, now: float) -> bool:
        """Return whether the present fire time is to be skipped. A clock that steps back prolongs the cooldown."""
        if last_failure_at is None or failures_in_a_row < self.failures:
            return False
        return now < last_failure_at + self.cooldown.total_seconds()


class CronOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule declares.

    Args:
        expression: See `CronExpression`.
        timezone: IANA name.
        skip_if_older_than: A fire time that could not run for this long is skipped.
        from_previous: After downtime, run the missed fire times, oldest first, except those older than
            `skip_if_older_than`. By default the schedule continues with the next fire time.
        overlap: What happens at a fire time while an earlier run has not ended.
        retry: How often the run of one fire time is repeated after it fails.
        jitter: Each fire time runs up to this much later. The delay of one fire time is always the same; see
            `delivery_delay`.
        breaker: Skip fire times for a while after failures in a row.
        name: Name of the schedule. By default it is the name of the method.

    Raises:
        TypeError: A value is of another type. The text names it.
        ValueError: A value is out of range. The text names it.
    """

    expression: str
    timezone: str = "UTC"
    skip_if_older_than: timedelta = timedelta(days=1)
    from_previous: bool = False
    overlap: Overlap = "queue"
    retry: Retry = DEFAULT_RETRY
    jitter: timedelta = timedelta(0)
    breaker: Breaker | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        check_record("", self)
        check_expression(self.expression, self.timezone)
        check_duration("skip_if_older_than", self.skip_if_older_than)
        check_duration("jitter", self.jitter, zero=True)
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be a letter or digit, then up to 99 letters, digits, _ . or -")


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive fire times that will not run, and why."""

    reason: Literal["missed", "too old"]
    """`missed`: they passed while nobody led. `too old`: they passed more than `skip_if_older_than` ago."""
    count: int
    """At most `MAX_COUNTED`."""
    first: float
    last: float
    is_more: bool
    """Whether there are more than `count`. `last` is the last of all of them in any case."""


class CronPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule does next."""

    next_at: float | None
    """The fire time whose message is to be stored, or `None` if the expression has no more."""
    skipped: tuple[Skipped, ...] = ()
    """All fire times between the previous one and `next_at`."""


def plan(
    expression: CronExpression, previous: float, now: float, *, skip_if_older_than: float, from_previous: bool
) -> CronPlan:
    """Return the fire time whose message to store next, and the fire times that are skipped before it.

    `next_at` is greater than `previous` even if the clock stepped back. So if each plan starts from the result of the
    one before, every fire time is planned at most once, and every fire time is either planned or reported as skipped.
    Complexity: bounded by `MAX_COUNTED`, however long ago `previous` is.

    Args:
        expression: When the schedule fires.
        previous: The last fire time whose message was stored; for a new schedule, when it was made.
        now: The present time.
        skip_if_older_than: In seconds. With `from_previous`, fire times that are older at `now` are skipped.
        from_previous: Continue with the first fire time after `previous` that is not too old, instead of the first one
            after `now`.
    """
    horizon = math.ceil(now - skip_if_older_than) - 1 if from_previous else now
    if horizon <= previous:
        return CronPlan(next_at=expression.after(previous))
    skipped = _skipped("too old" if from_previous else "missed", expression, previous, horizon)
    return CronPlan(next_at=expression.after(horizon), skipped=skipped)


def delivery_delay(schedule: str, fire_time: float, jitter: float) -> float:
    """Return the delay of one fire time in seconds, in [0, jitter). It is the same in every process.

    Frozen by a test: a message that is stored again, even by another release, is due at the same time.
    """
    digest = hashlib.blake2b(f"{schedule}@{int(fire_time)}".encode(), digest_size=8).digest()
    return jitter * (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def expected_interval(expression: CronExpression, last: float) -> float | None:
    """Return the seconds from `last`, the last fire time that ran, to the next one, or `None` if there is none."""
    following = expression.after(last)
    return None if following is None else following - last


def is_overdue(expression: CronExpression, last_at: float | None, created_at: float, now: float) -> bool:
    """Return whether a schedule is unhealthy because nothing ran for more than twice its expected interval.

    A schedule becomes overdue one interval after the fire time that should have run. For a schedule that never ran
    that is its first fire time after `created_at`, and the interval is the one that follows it. So a schedule that is
    created just before a fire time gets as much time as it does later. Jitter is not considered: subtract it from
    `now`.

    Args:
        expression: When the schedule fires.
        last_at: The last fire time that ran, or `None` if none did.
        created_at: When the schedule was created, or last resumed or changed.
        now: The present time.
    """
    due = expression.after(created_at if last_at is None else last_at)
    if due is None:
        return False
    interval = expected_interval(expression, due) if last_at is None else due - last_at
    return interval is not None and now > due + interval


def fire_time_key(schedule: str, fire_time: float, revision: int) -> str:
    """Return the idempotency key of the message of one fire time, such as `cron:sweep@2026-11-27T12:30:00Z#0`.

    A storage format, frozen by a test. The key depends on schedule, fire time and revision alone. So a leader that
    plans a fire time again, after a restart or a takeover, does not store a second message.
    """
    time = datetime.fromtimestamp(int(fire_time), UTC).replace(tzinfo=None).isoformat()
    return f"cron:{schedule}@{time}Z#{revision}"


def parse_fire_time_key(key: str) -> tuple[str, float, int] | None:
    """Return schedule, fire time and revision of a key made by `fire_time_key`, or `None` for any other key."""
    if not (match := _KEY.fullmatch(key)):
        return None
    schedule, time, revision = match.groups()
    try:
        return schedule, datetime.fromisoformat(time).timestamp(), int(revision)
    except ValueError:
        return None


def run_now_key(schedule: str, number: int) -> str:
    """Return the idempotency key of a message with which a person runs a schedule's method, as `now:sweep#7`."""
    return f"now:{schedule}#{number}"


def parse_run_now_key(key: str) -> str | None:
    """Return the schedule of a key made by `run_now_key`, or `None` for any other key."""
    match = _NOW_KEY.fullmatch(key)
    return match[1] if match else None


def _skipped(
    reason: Literal["missed", "too old"], expression: CronExpression, previous: float, horizon: float
) -> tuple[Skipped, ...]:
    """Return the fire times in (previous, horizon], if there are any."""
    until_horizon = takewhile(lambda stamp: stamp <= horizon, expression.following(previous))
    passed = list(islice(until_horizon, MAX_COUNTED + 1))
    if not passed:
        return ()
    is_more = len(passed) > MAX_COUNTED
    last = (expression.before(math.floor(horizon) + 1) if is_more else None) or passed[-1]
    count = min(len(passed), MAX_COUNTED)
    return (Skipped(reason=reason, count=count, first=passed[0], last=last, is_more=is_more),)


def _zone(name: str) -> tzinfo:
    # cronsim is several times faster in datetime's UTC than in a zone of that name.
    return UTC if name == "UTC" else ZoneInfo(name)


def _first_above(value: int, values: set[int], limit: int) -> int:
    return min((item for item in values if item > value), default=limit)


def check_expression(expression: str, timezone: str) -> None:
    """Check an expression that somebody writes. What is stored already is read as it always was.

    Raises:
        ValueError: It is not valid, or has a step that is larger than its field, such as `*/90` in minutes, which would
            not mean every 90 minutes but once an hour.
    """
    CronExpression(expression, timezone)
    parts = expression.split()
    if len(parts) < 5:
        return  # an alias
    for name, part in zip(list(_ENDS)[-len(parts) :], parts, strict=True):
        first, last = map(int, _ENDS[name])
        for step in re.findall(r"/(\d+)", part):
            if int(step) > last - first + 1:
                raise ValueError(
                    f"cron expression {expression!r}: {name} {part!r} has a step of {step}, but the field ends at "
                    f"{last} and begins again, so it cannot mean every {step}: write the values, separated by commas, "
                    "or run more often and return early"
                )


def _complaint(expression: str, field: str) -> str:
    """Say what is wrong with an expression: the field that cronsim names, or else the number of fields."""
    parts = expression.split()
    if field not in _ALLOWED:
        return f"cron expression {expression!r} has {len(parts)} fields: {_GRAMMAR}"
    index = list(_ALLOWED).index(field) - (len(parts) == 5)
    where = f"cron expression {expression!r}: {field} {parts[index]!r}"
    fallen = re.search(r"(\w+)-(\w+)", parts[index])
    # A range whose ends are valid, each on its own, can only be wrong because it falls.
    if fallen and all(_is_valid(expression, index, end) for end in fallen.groups()):
        begin, end = fallen.groups()
        first, last = _NAMED_ENDS[field] if field in _NAMED_ENDS and begin.isalpha() else _ENDS[field]
        return f"{where}: a range must not fall: write {begin}-{last},{first}-{end} instead of {fallen[0]}"
    return f"{where} is not within {_ALLOWED[field]}; {_GRAMMAR}"


def _is_valid(expression: str, index: int, value: str) -> bool:
    parts = expression.split()
    parts[index] = value
    try:
        CronSim(" ".join(parts), datetime.fromtimestamp(_REFERENCE, UTC))
    except CronSimError:
        return False
    return True
