"""The schedules of a led singleton: each instant's message is stored before it is due, one after the other.

A schedule's row names the next instant; its message is stored first, under a key of schedule and instant, and the row
after it. So whoever goes on from the row stores no instant twice and leaves none out, whatever happens in between.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from actorhub.core.clock import Clock
from actorhub.core.cron import (
    CronExpression,
    CronOptions,
    Plan,
    Skipped,
    delivery_delay,
    instant_key,
    is_overdue,
    parse_instant_key,
    plan,
)
from actorhub.core.errors import ActorhubError
from actorhub.engine.durable_message import DurableMessage
from actorhub.engine.message import Message
from actorhub.engine.singleton_health import ScheduleHealth
from actorhub.engine.spec import EntitySpec, HandlerSpec
from actorhub.storage.singleton_ports import Leadership, ScheduleRow, SingletonStore

_log: Final = logging.getLogger("actorhub.cron")

_EARLIEST: Final = 0.001
_SHORT_GAP: Final = 60.0
"""Seconds: what was missed for a shorter time, as in a takeover, is made up for."""
changed: Final = msgspec.structs.replace


class Teller(Protocol):
    """Stores an instant's message, once per key."""

    def __call__(self, spec: HandlerSpec, at: datetime, *, key: str, deliver_at: float) -> Awaitable[None]:
        """Return once it is stored."""
        ...


class Executions(Protocol):
    """What is told of executions."""

    def began(self, what: str) -> None:
        """Something of the singleton runs."""
        ...

    def ended(self, seconds: float, error: BaseException | None) -> None:
        """It is over."""
        ...


class _Schedule:
    """One schedule: what the code says, and what is stored of it."""

    def __init__(self, handler: HandlerSpec, options: CronOptions, row: ScheduleRow) -> None:
        self.handler = handler
        self.options = options
        self.row = row
        self.is_dirty = False
        """The row has counts that are not written."""
        self.unsettled: set[float] = set()
        """Instants whose first run began here and that have no end yet."""

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def expression(self) -> CronExpression:
        return CronExpression(self.row.expression, self.row.timezone)

    def planned(self, now: float) -> Plan | None:
        """Return the next instant, if it is time to plan one."""
        row = self.row
        if row.paused or (row.next_at is not None and row.next_at > now):
            return None
        return plan(
            self.expression,
            row.next_at,
            now,
            skip_if_older_than=self.options.skip_if_older_than.total_seconds(),
            from_previous=self.options.from_previous or (row.next_at is not None and now - row.next_at < _SHORT_GAP),
        )

    def why_skipped(self, at: float, now: float) -> str:
        """Return why an instant that is due is not run; empty: it is."""
        row, options = self.row, self.options
        if row.paused:
            return "paused"
        if now - at > options.skip_if_older_than.total_seconds():
            return "too old"
        finished = row.last_finished_at
        still_ran = finished is not None and finished > at + options.jitter.total_seconds()
        if options.overlap == "skip" and (self.unsettled - {at} or still_ran):
            return "an earlier run had not ended"
        if options.breaker is not None and options.breaker.is_open(row.failures_in_a_row, finished, now):
            return f"{row.failures_in_a_row} instants in a row failed"
        return ""

    def skip(self, reason: str, count: int, first: float, last: float) -> None:
        """Count instants that are not run."""
        span = _text(first) if first == last else f"{_text(first)} to {_text(last)}"
        self.row = changed(self.row, skipped=self.row.skipped + count, last_skip=f"{reason}: {span}")
        self.is_dirty = True
        _log.warning("%s.%s: skipped %d: %s", self.row.singleton, self.name, count, self.row.last_skip)


class Schedules:
    """Plans and runs the schedules of one singleton, for its leader."""

    def __init__(
        self,
        *,
        spec: EntitySpec,
        leadership: Leadership,
        store: SingletonStore,
        clock: Clock,
        now: Callable[[], float],
        tell: Teller,
        executions: Executions,
    ) -> None:
        self._declared = {
            str(cron.name): (handler, cron) for handler in spec.handlers.values() for cron in handler.crons
        }
        self._leadership = leadership
        self._store = store
        self._clock = clock
        self._now = now
        self._tell = tell
        self._executions = executions
        self._schedules: dict[str, _Schedule] = {}
        self._must_load = True

    def look(self) -> None:
        """Read at the next step what operators changed."""
        self._must_load = True

    async def step(self) -> float | None:
        """Do what is due; return the seconds until something is, `None`: there are no schedules.

        Raises:
            PersistenceError: the store failed, or the shard was lost. The next step goes on.
        """
        if not self._declared:
            return None
        if self._must_load:
            self._must_load = False
            try:
                await self.load()
            except ActorhubError:
                self._must_load = True
                raise
        due: list[float] = []
        for schedule in self._schedules.values():
            if (planned := schedule.planned(self._now())) is not None:
                await self._advance(schedule, planned)
            elif schedule.is_dirty:
                await self._keep(schedule)
            if schedule.row.next_at is not None and not schedule.row.paused:
                due.append(schedule.row.next_at)
        return max(min(due) - self._now(), _EARLIEST) if due else None

    async def run(
        self, message: Message, at: datetime, call: Callable[[], Awaitable[Any]]
    ) -> Any:  # what the method returns
        """Run the instant of a message, unless it is to be skipped."""
        key = message.key if isinstance(message, DurableMessage) else None
        parsed = parse_instant_key(key) if key else None
        name = parsed[0] if parsed else str(message.spec.cron)
        schedule = self._schedules.get(name)
        attempt = message.attempts if isinstance(message, DurableMessage) else 1
        if parsed is not None and (schedule is None or parsed[2] != schedule.row.revision):
            _log.info("%s: %s is not run: the schedule was changed", message.what, key)
            return None
        if schedule is None:
            return await call()
        instant = at.timestamp()
        if parsed is not None and attempt == 1 and (reason := schedule.why_skipped(instant, self._now())):
            schedule.skip(reason, 1, instant, instant)
            return None
        return await self._tracked(schedule, message, instant, call)

    def health(self) -> list[ScheduleHealth]:
        """Return how each schedule is, by name."""
        return [_health(self._schedules[name], self._now()) for name in sorted(self._schedules)]

    async def load(self) -> None:
        """Join what the code says with what is stored; write what is new, delete what is gone."""
        rows, now = await self._store.schedules(self._leadership.singleton)
        stored = {row.name: row for row in rows}
        if gone := sorted(set(stored) - set(self._declared)):
            await self._store.remove_schedules(self._leadership, gone)
        for name, (handler, options) in self._declared.items():
            row = stored.get(name)
            known = self._schedules.get(name)
            if known is None:
                row = row or _new_row(self._leadership.singleton, name, options, now)
                known = self._schedules[name] = _Schedule(handler, options, row)
            elif row is not None:
                known.row = _with_edits(known.row, row)
            declared = _declared(options)
            if known.row.declared != declared:
                _log.info("%s.%s: the code has another expression now: %s", known.row.singleton, name, declared)
                known.row = changed(
                    known.row,
                    declared=declared,
                    expression=options.expression,
                    timezone=options.timezone,
                    edited=False,
                    next_at=None,
                )
                known.is_dirty = True

    async def _advance(self, schedule: _Schedule, planned: Plan) -> None:
        at = planned.next_at
        if at is not None:
            options, name = schedule.options, schedule.name
            delay = delivery_delay(name, at, options.jitter.total_seconds())
            key = instant_key(name, at, schedule.row.revision)
            await self._tell(schedule.handler, datetime.fromtimestamp(at, UTC), key=key, deliver_at=at + delay)
        for skipped in planned.skipped:
            _note_skipped(schedule, skipped)
        schedule.row = changed(schedule.row, next_at=at)
        await self._keep(schedule)

    async def _keep(self, schedule: _Schedule) -> None:
        """Write the row; where an operator changed it meanwhile, plan anew by what the operator said."""
        schedule.is_dirty = False
        row = schedule.row
        try:
            stored = await self._store.keep_schedule(self._leadership, row)
        except ActorhubError:
            schedule.is_dirty = True
            raise
        if stored.revision != row.revision:
            schedule.row = _with_edits(schedule.row, stored)
            schedule.is_dirty = True

    async def _tracked(
        self, schedule: _Schedule, message: Message, instant: float, call: Callable[[], Awaitable[Any]]
    ) -> Any:
        started, began = self._now(), self._clock.monotonic()
        schedule.unsettled.add(instant)
        self._executions.began(schedule.name)
        error: BaseException | None = None
        try:
            return await call()
        except BaseException as exc:
            error = exc
            raise
        finally:
            seconds = self._clock.monotonic() - began
            self._executions.ended(seconds, error)
            last_at = max(instant, schedule.row.last_at or instant)
            schedule.row = changed(
                schedule.row,
                last_at=last_at,
                last_started_at=started,
                last_finished_at=self._now(),
                last_duration=seconds,
                last_error="" if error is None else f"{type(error).__name__}: {error}"[:1000],
            )
            self._settle(schedule, message, instant, error)

    def _settle(self, schedule: _Schedule, message: Message, instant: float, error: BaseException | None) -> None:
        row = schedule.row
        attempt = message.attempts if isinstance(message, DurableMessage) else message.spec.retry.attempts
        schedule.is_dirty = True
        if error is None:
            schedule.row = changed(row, runs=row.runs + 1, failures_in_a_row=0)
        elif attempt >= message.spec.retry.attempts:
            schedule.row = changed(row, failures=row.failures + 1, failures_in_a_row=row.failures_in_a_row + 1)
        else:
            return
        schedule.unsettled.discard(instant)


def _new_row(singleton: str, name: str, options: CronOptions, now: float) -> ScheduleRow:
    return ScheduleRow(
        singleton=singleton,
        name=name,
        declared=_declared(options),
        expression=options.expression,
        timezone=options.timezone,
        created_at=now,
    )


def _declared(options: CronOptions) -> str:
    return f"{options.expression}|{options.timezone}"


def _with_edits(row: ScheduleRow, stored: ScheduleRow) -> ScheduleRow:
    """Return `row` with what operators decided, if they did since it was read; it is planned anew then."""
    if stored.revision == row.revision:
        return row
    return changed(
        row,
        paused=stored.paused,
        edited=stored.edited,
        expression=stored.expression,
        timezone=stored.timezone,
        revision=stored.revision,
        next_at=None,
    )


def _note_skipped(schedule: _Schedule, skipped: Skipped) -> None:
    reason = skipped.reason if not skipped.is_more else f"{skipped.reason}, more than {skipped.count}"
    schedule.skip(reason, skipped.count, skipped.first, skipped.last)


def _health(schedule: _Schedule, now: float) -> ScheduleHealth:
    row = schedule.row
    overdue = is_overdue(
        schedule.expression, row.last_at, row.created_at, now - schedule.options.jitter.total_seconds()
    )
    return ScheduleHealth(
        name=row.name,
        expression=row.expression,
        timezone=row.timezone,
        paused=row.paused,
        next_at=row.next_at,
        last_at=row.last_at,
        status="paused"
        if row.paused
        else "overdue"
        if overdue
        else "never executed"
        if row.last_at is None
        else "healthy",
        runs=row.runs,
        failures=row.failures,
        skipped=row.skipped,
    )


def _text(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
