"""One schedule of a led singleton: what the code declares, what is stored, and what follows from both."""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from actorhub.core.cron import CronExpression, CronOptions, CronPlan, Skipped, delivery_delay, is_overdue, plan
from actorhub.core.logger import get_logger
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.singletons.health import ScheduleHealth
from actorhub.storage.singleton_ports import ScheduleRow

_log: Final = get_logger("actorhub.cron")

_SHORT_GAP: Final = 60.0
"""Seconds. A fire time that was missed by less than this, because of a takeover for example, is made up for."""
_LONGEST_TEXT: Final = 1000
"""Characters of an error that are kept."""
_changed: Final = msgspec.structs.replace


class CronSchedule:
    """One schedule of a singleton.

    Every method is synchronous. It reads or changes `row`; `CronChain` writes the row when `is_dirty` says so.

    Args:
        handler: The method with `@cron`.
        options: What the code declares.
        row: What is stored; `None` if nothing is.
        singleton: Name of the singleton.
        now: The time by the store's clock.
    """

    def __init__(
        self, handler: HandlerSpec, options: CronOptions, row: ScheduleRow | None, *, singleton: str, now: float
    ) -> None:
        self.handler = handler
        self.options = options
        self.name = str(options.name)
        self._declared = f"{options.expression}|{options.timezone}"
        self.row = row or ScheduleRow(
            singleton=singleton,
            name=self.name,
            declared=self._declared,
            expression=options.expression,
            timezone=options.timezone,
            created_at=now,
        )
        self.is_dirty = False
        """Whether the row has changes that have not been written."""
        self.begun: dict[float, int] = {}
        """The messages of fire times that began here and may not have ended. Kept only for `overlap="skip"`."""
        self._is_over = False
        """Whether the expression has no further fire times."""
        self._parsed: tuple[str, str] | None = None
        self._expression: CronExpression | None = None
        self._adopt_code()

    @property
    def expression(self) -> CronExpression | None:
        """The expression in force; `None` if what is stored is not valid here, so that the schedule does not run."""
        stored = (self.row.expression, self.row.timezone)
        if stored != self._parsed:
            self._parsed = stored
            try:
                self._expression = CronExpression(*stored)
            except ValueError as error:
                self._expression = None
                self._change(last_error=f"{error}"[:_LONGEST_TEXT])
                _log.error("schedule %s.%s does not run: %s", self.row.singleton, self.name, error)
        return self._expression

    def merge(self, stored: ScheduleRow) -> None:
        """Take over what an operator has changed since the row was read. If anything, plan from scratch.

        Each change by an operator raises the revision. All other columns are the leader's own.
        """
        if stored.revision == self.row.revision:
            return
        self._change(
            paused=stored.paused,
            edited=stored.edited,
            declared=self._declared if stored.edited else stored.declared,
            expression=stored.expression,
            timezone=stored.timezone,
            revision=stored.revision,
            planned_from=None,
            next_at=None,
        )
        self._is_over = False
        self._adopt_code()

    def begin(self, now: float) -> bool:
        """Have a new or changed schedule planned from `now` on, once the row is written; `False` for any other."""
        if self.row.planned_from is not None or self.wakes_at(now) is None:
            return False
        self._change(planned_from=now)
        return True

    def planned(self, now: float) -> CronPlan | None:
        """Return the next fire time and those that are skipped before it, or `None` if it is not time to plan."""
        row, expression = self.row, self.expression
        if row.paused or expression is None or self._is_over or row.planned_from is None:
            return None
        if (previous := row.next_at) is None:
            # A fire time that has already begun must not come again, even if the clock was set back since.
            previous = max(row.planned_from, row.last_at or row.planned_from)
        elif previous > now:
            return None
        return plan(
            expression,
            previous,
            now,
            skip_if_older_than=self.options.skip_if_older_than.total_seconds(),
            from_previous=self.options.from_previous or now - previous < _SHORT_GAP,
        )

    def advance(self, planned: CronPlan) -> None:
        """Count the skipped fire times, and wait for the planned one. Its message is stored."""
        for skipped in planned.skipped:
            self._skip_all(skipped)
        self._is_over = planned.next_at is None
        self._change(next_at=planned.next_at)

    def wakes_at(self, now: float) -> float | None:
        """Return when it is time to plan; `None` if that depends on an operator."""
        if self.row.paused or self._is_over or self.expression is None:
            return None
        return now if self.row.next_at is None else self.row.next_at

    def due(self, fire_time: float) -> float:
        """Return when a fire time is to run, jitter included."""
        return fire_time + delivery_delay(self.name, fire_time, self.options.jitter.total_seconds())

    def has(self, fire_time: float) -> bool:
        """Whether the expression in force has this fire time."""
        return self.expression is not None and self.expression.after(fire_time - 1) == fire_time

    def why_skipped(self, fire_time: float, now: float) -> str:
        """Return why a fire time that is due and has not begun is skipped; an empty string if it is to run."""
        row, options, due = self.row, self.options, self.due(fire_time)
        if row.paused:
            return "paused"
        if now - due > options.skip_if_older_than.total_seconds():
            return "too old"
        if options.overlap == "skip" and self._ran_at(due):
            return "an earlier run had not ended"
        if options.breaker is not None and options.breaker.is_open(row.failures_in_a_row, row.last_finished_at, now):
            return f"{row.failures_in_a_row} fire times in a row failed"
        return ""

    def skip(self, reason: str, fire_time: float) -> None:
        """Count a fire time that is skipped."""
        self._skip(reason, 1, _text(fire_time))

    def on_started(self, fire_time: float | None, message_id: int, now: float) -> None:
        """A run begins. Without a fire time, a person runs the method."""
        self._change(last_started_at=now)
        if fire_time is not None:
            self._change(last_at=max(fire_time, self.row.last_at or fire_time))
            if self.options.overlap == "skip":
                self.begun[fire_time] = message_id

    def on_ended(self, seconds: float, now: float) -> None:
        """A run has ended. Whether it succeeded is known only after its commit."""
        self._change(last_finished_at=now, last_duration=seconds)

    def on_succeeded(self, fire_time: float | None) -> None:
        """A run has been committed."""
        self._change(runs=self.row.runs + 1, failures_in_a_row=0, last_error="")
        self._settle(fire_time)

    def on_failed(self, fire_time: float | None, text: str, *, for_good: bool) -> None:
        """A run has failed. Another attempt follows unless it failed `for_good`."""
        self._change(last_error=text[:_LONGEST_TEXT])
        if for_good:
            self._change(failures=self.row.failures + 1, failures_in_a_row=self.row.failures_in_a_row + 1)
            self._settle(fire_time)

    def health(self, now: float) -> ScheduleHealth:
        """Return the health of the schedule."""
        row = self.row
        return ScheduleHealth(
            name=row.name,
            expression=row.expression,
            timezone=row.timezone,
            paused=row.paused,
            next_at=row.next_at,
            last_at=row.last_at,
            status=self._status(now),
            runs=row.runs,
            failures=row.failures,
            skipped=row.skipped,
        )

    def _status(self, now: float) -> Literal["healthy", "overdue", "never executed", "paused"]:
        row, since = self.row, self.row.planned_from
        if row.paused:
            return "paused"
        # A schedule that was just resumed or changed has had no chance to run by its present plan.
        last_at = None if since is not None and row.last_at is not None and row.last_at < since else row.last_at
        created_at = row.created_at if since is None else max(since, row.created_at)
        now -= self.options.jitter.total_seconds()
        if self.expression is None or is_overdue(self.expression, last_at, created_at, now):
            return "overdue"
        return "never executed" if row.last_at is None else "healthy"

    def _adopt_code(self) -> None:
        """Take over expression and time zone from the code if they have changed there since the row was written.

        An edit by an operator holds until then: the row keeps what the code declared at the time.
        """
        if self.row.declared == self._declared:
            return
        _log.info("schedule %s.%s was changed in the code: %s", self.row.singleton, self.name, self._declared)
        self._change(
            declared=self._declared,
            expression=self.options.expression,
            timezone=self.options.timezone,
            edited=False,
            planned_from=None,
            next_at=None,
        )

    def _ran_at(self, due: float) -> bool:
        """Whether the last run was under way at `due`."""
        began, ended = self.row.last_started_at, self.row.last_finished_at
        return began is not None and ended is not None and began <= due < ended

    def _settle(self, fire_time: float | None) -> None:
        if fire_time is not None:
            self.begun.pop(fire_time, None)

    def _skip_all(self, skipped: Skipped) -> None:
        reason = skipped.reason if not skipped.is_more else f"{skipped.reason}, more than {skipped.count}"
        first, last = _text(skipped.first), _text(skipped.last)
        self._skip(reason, skipped.count, first if first == last else f"{first} to {last}")

    def _skip(self, reason: str, count: int, which: str) -> None:
        self._change(skipped=self.row.skipped + count, last_skip=f"{reason}: {which}")
        _log.warning(
            "schedule %s.%s skipped %d fire time(s): %s", self.row.singleton, self.name, count, self.row.last_skip
        )

    def _change(self, **what: object) -> None:
        self.row = _changed(self.row, **what)
        self.is_dirty = True


def _text(fire_time: float) -> str:
    return datetime.fromtimestamp(fire_time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
