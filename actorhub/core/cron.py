"""Cron arithmetic: which instants a schedule has, which of them is next, and which are skipped, all of it pure.

An instant is a whole second since the Unix epoch, written as a float, as all times here are.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from typing import Final, Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from cronsim.cronsim import is_imaginary

from actorhub.core.retry import DEFAULT_RETRY, Retry

Overlap: TypeAlias = Literal["queue", "skip", "allow"]
"""What an instant does that comes while an earlier one still runs: wait for it, not run, or run beside it."""

MAX_COUNTED: Final = 1000
"""Skipped instants are counted up to here."""

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
    "day-of-month": "1-31, as far as one of its months has that day, L or LW",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 or SUN-SAT, each also with L or #1 to #5",
}
"""By the names that cronsim gives the fields in its errors, in their order."""
_GRAMMAR: Final = "write five fields such as '*/5 8-18 * * MON-FRI', six with seconds first, or one of " + " ".join(
    _ALIASES
)
_REFERENCE: Final = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""From here on a new expression must match within 50 years; fixed, so that all runners judge it alike."""
_NAME: Final = re.compile(r"\w[\w.-]{0,99}")
_KEY: Final = re.compile(r"cron:(.+)@(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)#(0|[1-9]\d{0,17})", re.ASCII | re.DOTALL)


class CronExpression(msgspec.Struct, frozen=True):
    """The instants of a cron expression in a time zone, as cronsim defines them, which follows Debian's cron.

    Five fields (minute, hour, day of month, month, day of week), six with seconds *first*, or `@hourly`, `@daily`,
    `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. Day of month and day of week must both match if one of
    them starts with `*`, otherwise one of them is enough.

    When clocks change, there are two kinds. Five fields whose minute and hour do not start with `*` name times of day:
    one that is left out (02:30 of a day whose clock goes from 02:00 to 03:00) runs at the first minute after the gap,
    once for all times in the gap; one that comes twice runs the first time only. All others follow the clock on the
    wall: what is left out does not run, and what comes twice runs twice. So `*/30 * * * *` and `0 * * * *` run every
    half hour and every hour throughout; and `0 30 2 * * *`, which has six fields, is not `30 2 * * *`.

    Args:
        expression: As above; letters in either case.
        timezone: IANA name.

    Raises:
        ValueError: the expression makes no sense or never matches, or there is no such time zone; says which and why.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        try:
            _zone(self.timezone)
        except (KeyError, OSError, ValueError):  # by how the name is wrong: unknown, a folder, a path
            raise ValueError(
                f"timezone={self.timezone!r} is unknown: write an IANA name such as 'Europe/Berlin', or 'UTC'; "
                "where the system has no time zones, install the package tzdata"
            ) from None
        try:
            first = self.after(_REFERENCE)
        except CronSimError as exc:
            raise ValueError(_complaint(self.expression, str(exc).removeprefix("Bad "))) from None
        if first is None:
            raise ValueError(f"cron expression {self.expression!r} matches no time within 50 years: {_GRAMMAR}")

    def following(self, instant: float) -> Iterator[float]:
        """Yield the instants after `instant`, strictly increasing, until 50 years have none."""
        last = float(math.floor(instant))
        for found in self._simulate(last):
            # A time of day is found again in an hour that comes twice, where it would lie in the past.
            if (stamp := found.timestamp()) > last:
                yield stamp
                last = stamp

    def after(self, instant: float) -> float | None:
        """Return the first instant strictly after `instant`; `None`: there is none within 50 years."""
        return next(self.following(instant), None)

    def before(self, instant: float) -> float | None:
        """Return the last instant strictly before `instant`; `None`: there is none within 50 years."""
        for found in self._simulate(float(math.ceil(instant)), reverse=True):
            # Going backwards, cronsim may leave out instants of an hour that comes twice: look forward from there.
            last = None
            for stamp in self.following(found.timestamp() - 1):
                if stamp >= instant:
                    break
                last = stamp
            if last is not None:
                return last
        return None

    def _simulate(self, instant: float, *, reverse: bool = False) -> CronSim:
        fields = _ALIASES.get(self.expression.strip().lower(), self.expression)
        return _Simulation(fields, datetime.fromtimestamp(instant, _zone(self.timezone)), reverse=reverse)


class _Simulation(CronSim):
    """cronsim, except that a local hour may begin or end at any minute.

    cronsim steps by 3600 seconds from one full hour to the next. Where clocks change by half an hour (Lord Howe) that
    leads past full hours for the rest of the day, so that a daily job can be left out. Steps to the next value, instead
    of second by second, also bound the time that counting takes.
    """

    def advance_hour(self) -> bool:
        if self.fixup_tz is None and self.dt.hour == 0 and is_imaginary(self.dt):
            # cronsim begins a day at midnight, also one whose first hour is left out.
            self.dt = self.dt.astimezone(UTC).astimezone(self.dt.tzinfo)
            return True
        if (hour := self.dt.hour) in self.hours:
            return False
        # Clocks change by less than three hours; what is before the last three cannot lead past the hour that is meant.
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
    """A circuit breaker: instants are skipped for a while after a schedule failed several times in a row.

    Closed until `failures` in a row; then open for `cooldown`; then half open: the next instant is tried. If that one
    succeeds there is no failure in a row any more, which closes it; if it fails, it is open for `cooldown` again.

    Args:
        failures: How many in a row open it.
        cooldown: How long it stays open after the last failure.

    Raises:
        ValueError: a value makes no sense; says which.
    """

    failures: int = 5
    cooldown: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise ValueError(f"failures={self.failures} must be at least 1")
        if self.cooldown <= timedelta(0):
            raise ValueError(f"cooldown={self.cooldown} must be more than zero")

    def is_open(self, failures_in_a_row: int, last_failure_at: float | None, now: float) -> bool:
        """Return whether the instant that has come is to be skipped; a clock that stepped back makes that longer."""
        if last_failure_at is None or failures_in_a_row < self.failures:
            return False
        return now < last_failure_at + self.cooldown.total_seconds()


class CronOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule's declaration says.

    Args:
        expression: See `CronExpression`.
        timezone: IANA name.
        skip_if_older_than: An instant that could not run for so long is skipped.
        from_previous: After downtime, make up for the instants that passed, oldest first, but for those that are older
            than `skip_if_older_than`; default: go on with the first instant to come.
        overlap: What an instant does that comes while an earlier one still runs.
        retry: How often one instant's run is repeated after it crashed.
        jitter: Each instant runs up to so much later, the same for each attempt to plan it; see `delivery_delay`.
        breaker: Skip instants for a while after failures in a row.
        name: Of the schedule; default: its method's.

    Raises:
        ValueError: a value makes no sense; says which.
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
        CronExpression(self.expression, self.timezone)
        if self.skip_if_older_than <= timedelta(0):
            raise ValueError(f"skip_if_older_than={self.skip_if_older_than} must be more than zero")
        if self.overlap not in (allowed := get_args(Overlap)):
            raise ValueError(f"overlap={self.overlap!r} must be one of {', '.join(map(repr, allowed))}")
        if self.jitter < timedelta(0):
            raise ValueError(f"jitter={self.jitter} must not be negative")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be a letter or digit, then up to 99 letters, digits, _ . or -")


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Instants in a row that will not run, and why."""

    reason: Literal["missed", "too old"]
    """They passed while nobody led, or nobody led for longer than `skip_if_older_than` after them."""
    count: int
    """At most `MAX_COUNTED`."""
    first: float
    last: float
    is_more: bool
    """There are more than `count`; `last` is the last one all the same."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule does next."""

    next_at: float | None
    """The instant whose message is to be stored; `None`: the expression has no more."""
    skipped: tuple[Skipped, ...] = ()
    """All instants between the previous one and `next_at`."""


def plan(
    expression: CronExpression, previous: float | None, now: float, *, skip_if_older_than: float, from_previous: bool
) -> Plan:
    """Return which instant's message to store next, and what is left out before it.

    `next_at` is greater than `previous`, wherever the clock stepped to: planned from one to the next, each instant
    comes at most once, and each one is either planned or reported as skipped. Complexity: bounded by `MAX_COUNTED`,
    however long ago `previous` is.

    Args:
        expression: The schedule's.
        previous: The last instant for which a message was stored; `None`: the schedule is new.
        now: What the clock says.
        skip_if_older_than: Seconds; with `from_previous`, instants that are older at `now` are skipped.
        from_previous: Go on with the first instant after `previous` that is not too old, instead of the first after
            `now`.
    """
    if previous is None:
        return Plan(next_at=expression.after(now))
    horizon = math.ceil(now - skip_if_older_than) - 1 if from_previous else now
    if horizon <= previous:
        return Plan(next_at=expression.after(previous))
    skipped = _skipped("too old" if from_previous else "missed", expression, previous, horizon)
    return Plan(next_at=expression.after(horizon), skipped=skipped)


def delivery_delay(schedule: str, instant: float, jitter: float) -> float:
    """Return by how many seconds, in [0, jitter), an instant of a schedule runs later: the same wherever it is asked.

    Frozen by a test: a message that is stored again, by another release too, is due at the same time.
    """
    digest = hashlib.blake2b(f"{schedule}@{int(instant)}".encode(), digest_size=8).digest()
    return jitter * (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def expected_interval(expression: CronExpression, last: float) -> float | None:
    """Return the seconds from `last`, the instant that ran last, to the next one; `None`: there is no next one."""
    following = expression.after(last)
    return None if following is None else following - last


def is_overdue(expression: CronExpression, last_at: float | None, created_at: float, now: float) -> bool:
    """Return whether a schedule is unhealthy: nothing ran for more than twice its expected interval.

    That is one interval after the instant that should have run. A schedule that never ran is judged from its first
    instant after `created_at`, by the interval that follows it, so that creating it just before an instant leaves as
    much time as later ones have. Jitter is not known here: take it off `now`.

    Args:
        expression: The schedule's.
        last_at: The instant that ran last; `None`: none did.
        created_at: When the schedule came to be, or was last resumed or changed.
        now: What the clock says.
    """
    due = expression.after(created_at if last_at is None else last_at)
    if due is None:
        return False
    interval = expected_interval(expression, due) if last_at is None else due - last_at
    return interval is not None and now > due + interval


def instant_key(schedule: str, instant: float, revision: int) -> str:
    """Return the idempotency key of one instant's message, such as `cron:sweep@2026-11-27T12:30:00Z#0`.

    A storage format, frozen by a test. It depends on schedule, instant and revision alone: whoever plans an instant
    again, after a restart or a takeover, stores no second message.
    """
    time = datetime.fromtimestamp(int(instant), UTC).replace(tzinfo=None).isoformat()
    return f"cron:{schedule}@{time}Z#{revision}"


def parse_instant_key(key: str) -> tuple[str, float, int] | None:
    """Return schedule, instant and revision of a key that `instant_key` made; `None`: it made no such key."""
    if not (match := _KEY.fullmatch(key)):
        return None
    schedule, time, revision = match.groups()
    try:
        return schedule, datetime.fromisoformat(time).timestamp(), int(revision)
    except ValueError:
        return None


def _skipped(
    reason: Literal["missed", "too old"], expression: CronExpression, previous: float, horizon: float
) -> tuple[Skipped, ...]:
    """Return the instants in (previous, horizon], if there are any."""
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


def _complaint(expression: str, field: str) -> str:
    """Return what is wrong with an expression of which cronsim names the bad field, or that their number is wrong."""
    parts = expression.split()
    if field not in _ALLOWED:
        return f"cron expression {expression!r} has {len(parts)} fields: {_GRAMMAR}"
    index = list(_ALLOWED).index(field) - (len(parts) == 5)
    return f"cron expression {expression!r}: {field} {parts[index]!r} must be of {_ALLOWED[field]}; {_GRAMMAR}"
