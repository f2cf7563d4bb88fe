"""Schedules: `@cron(...)` on the methods of a singleton."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from actorhub._options import attach_cron
from actorhub.core.cron import Breaker, Overlap
from actorhub.core.retry import DEFAULT_RETRY, Retry

CronT = TypeVar("CronT", bound=Callable[[Any, datetime], Awaitable[Any]])


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
) -> Callable[[CronT], CronT]:
    """Run a method of a singleton on a schedule. The method gets its fire time, `at: datetime`, in UTC.

    Each fire time has one durable message, which is stored before it is due. So each fire time commits once, across
    restarts, takeovers and steps of the clock. It starts when it is due by the database's clock, and never earlier. It
    is retried like any durable message. If it fails for good, it becomes a dead letter, and the next fire time runs
    regardless. Operators can pause, change and trigger schedules with `actorhub schedules`.

    The schedule has the name of the method. If a method has several `@cron`, the second from the top is called
    `method-2`, and so on. They must have the same `overlap` and `retry`.

    Args:
        expression: Five fields (minute, hour, day of month, month, day of week), six with seconds first, or `@hourly`,
            `@daily`, `@weekly`, `@monthly`, `@yearly`. Daylight saving time is handled as in Debian's cron.
        timezone: IANA name of the time zone in which the expression is read.
        skip_if_older_than: A fire time that could only run later than this is skipped and counted.
        from_previous: After downtime, run the missed fire times one after the other, except those that are too old. By
            default they are skipped, except the one whose message was already stored. A gap of less than a minute, as
            in a takeover, does not count as downtime: fire times in it run.
        overlap: What happens at a fire time while an earlier run of the schedule has not ended. `"queue"` runs it
            afterwards, `"skip"` skips it, and `"allow"` starts it while the earlier run waits for something.
        retry: How often the run of one fire time is tried, and the pauses in between.
        jitter: Each fire time is delayed by up to this much. The delay of one fire time is always the same.
        breaker: After how many failed fire times in a row the schedule skips, and for how long.

    A method that overrides a scheduled one of a base class keeps its schedules, unless it has a `@cron` of its own.

    Raises:
        TypeError: At class definition, if a value is not valid, or two `@cron` of one method contradict each other.
    """
    if callable(expression):
        raise TypeError('@cron takes an expression first: write @cron("*/5 * * * *")')
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

    def mark(function: CronT) -> CronT:
        attach_cron(function, values)
        return function

    return mark
