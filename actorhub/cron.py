"""Schedules: `@cron(...)` on the methods of a singleton."""

from collections.abc import Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar

from actorhub._declaration import attach_cron
from actorhub.core.cron import Breaker, Overlap
from actorhub.core.retry import DEFAULT_RETRY, Retry

P = ParamSpec("P")
R = TypeVar("R")


def cron(
    expression: str,
    *,
    timezone: str = "UTC",
    skip_if_older_than: timedelta = timedelta(days=1),
    from_previous: bool = False,
    overlap: Overlap = "queue",
    retry: Retry = DEFAULT_RETRY,
    jitter: timedelta = timedelta(0),
    breaker: Breaker | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a method of a singleton at the instants of a cron expression; it takes the instant: `at: datetime`, in UTC.

    Each (schedule, instant) has one durable message, stored before the instant is due: it commits once, across
    restarts, takeovers and steps of the clock, and is retried like any durable message. It starts when it is due by
    the database's clock, never before. A run that fails for good becomes a dead letter; the next instant comes all
    the same. Operators can pause, change and run schedules: `actorhub schedules`.

    The schedule is called like the method. Where a method has several `@cron`, the second from above is called
    `method-2`, and so on; they share `overlap` and `retry`.

    Args:
        expression: Five fields (minute, hour, day of month, month, day of week), six with seconds first, or `@hourly`,
            `@daily`, `@weekly`, `@monthly`, `@yearly`. Daylight saving time is handled as Debian's cron does.
        timezone: Name in the IANA database, in whose time the expression is read.
        skip_if_older_than: An instant that can only be run later than that is skipped, and counted.
        from_previous: After a downtime run the missed instants one after the other, those too old left out. By
            default they are skipped, but for the one whose message was stored already. A gap of less than a minute,
            as in a takeover, is no downtime: what was missed in it is run.
        overlap: When an instant comes while a run of the same schedule has not ended: `"queue"` runs it after that,
            `"skip"` skips it, `"allow"` starts it while the other waits for something.
        retry: How often an instant is run, and how far apart.
        jitter: Instants are delayed by a time from zero to this, the same one whoever asks.
        breaker: After how many instants that failed for good the schedule rests, and how long.

    Raises:
        TypeError: at class definition, when a value makes no sense, or two of one method contradict each other.
    """
    values = {
        "expression": expression,
        "timezone": timezone,
        "skip_if_older_than": skip_if_older_than,
        "from_previous": from_previous,
        "overlap": overlap,
        "retry": retry,
        "jitter": jitter,
        "breaker": breaker,
    }

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        attach_cron(function, values)
        return function

    return mark
