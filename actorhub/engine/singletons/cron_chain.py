"""The schedules of a led singleton: each fire time's message is stored before it is due, one after the other.

A schedule's row names the next fire_time; its message is stored first, under a key of schedule and fire_time, and the row
after it. So whoever goes on from the row stores no fire_time twice and leaves none out, whatever happens in between.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from actorhub.core.clock import Clock
from actorhub.core.cron import CronPlan, fire_time_key, parse_fire_time_key
from actorhub.core.errors import ActorhubError, DuplicateKey, PersistenceError
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.singletons.cron_runs import CountedRuns
from actorhub.engine.singletons.cron_schedule import CronSchedule
from actorhub.engine.singletons.health import ScheduleHealth
from actorhub.storage.message_ports import MessageStore
from actorhub.storage.singleton_ports import Leadership, SingletonStore

_log: Final = logging.getLogger("actorhub.cron")

_EARLIEST: Final = 0.001


class ScheduleEvents(Protocol):
    """Who leads the singleton: stores the messages of its fire times, and is told of executions."""

    async def tell(self, spec: HandlerSpec, at: datetime, *, key: str, deliver_at: float) -> None:
        """Store the message of a fire time, once per key; return once it is stored."""
        ...

    def on_execution_started(self, what: str) -> None:
        """Something of the singleton runs."""
        ...

    def on_execution_ended(self, seconds: float, error: BaseException | None) -> None:
        """It is over."""
        ...

    def on_run_counted(self) -> None:
        """There is something to write of a schedule: `CronChain.step` does it."""
        ...


class CronChain:
    """Plans and runs the schedules of one singleton, for its leader. `load` comes first."""

    def __init__(
        self,
        *,
        spec: EntitySpec,
        leadership: Leadership,
        store: SingletonStore,
        messages: MessageStore,
        checkpoints: Checkpoints,
        clock: Clock,
        server: ServerClock,
        leader: ScheduleEvents,
    ) -> None:
        self._declared = {
            str(cron.name): (handler, cron) for handler in spec.handlers.values() for cron in handler.crons
        }
        self._leadership = leadership
        self._store = store
        self._messages = messages
        self._checkpoints = checkpoints
        self._clock = clock
        self._server = server
        self._leader = leader
        self._schedules: dict[str, CronSchedule] = {}
        self._must_load = False

    def poll(self) -> None:
        """Read at the next step what operators changed."""
        self._must_load = True

    async def load(self) -> None:
        """Join what the code says with what is stored; delete what is gone.

        Raises:
            PersistenceError: the store failed, or the shard was lost.
        """
        self._must_load = False
        singleton = self._leadership.singleton
        try:
            rows, now = await self._store.schedules(singleton)
            self._server.observe_time(now)
            stored = {row.name: row for row in rows}
            if gone := sorted(set(stored) - set(self._declared)):
                await self._store.remove_schedules(self._leadership, gone)
        except PersistenceError:
            self._must_load = True
            raise
        for name, (handler, options) in self._declared.items():
            row, known = stored.get(name), self._schedules.get(name)
            if known is None:
                self._schedules[name] = CronSchedule(handler, options, row, singleton=singleton, now=now)
            elif row is not None:
                known.merge(row)

    async def step(self) -> float | None:
        """Do what is due; return the seconds until something is, `None`: there are no schedules.

        Raises:
            PersistenceError: the store failed, or the shard was lost. The next step goes on.
        """
        if not self._declared:
            return None
        if self._must_load:
            await self.load()
        due: list[float] = []
        for schedule in self._schedules.values():
            if (planned := schedule.planned(self._server.now())) is not None:
                await self._advance(schedule, planned)
            elif schedule.is_dirty:
                await self._write_row(schedule)
            if (at := schedule.wakes_at(self._server.now())) is not None:
                due.append(at)
        return max(min(due) - self._server.now(), _EARLIEST) if due else None

    async def write(self) -> None:
        """Write what is not written yet, before somebody else leads.

        Raises:
            PersistenceError: the store failed, or the shard was lost.
        """
        for schedule in self._schedules.values():
            if schedule.is_dirty:
                await self._write_row(schedule)

    async def run(self, message: DurableMessage, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call the method for the fire_time of a message, unless it is not to be run; `call` is what a person sent."""
        parsed = parse_fire_time_key(message.key) if message.key else None
        if parsed is None:
            return await self._tracked(self._schedules[str(message.spec.cron)], message, None, call)
        name, fire_time, revision = parsed
        schedule = self._schedules.get(name)
        if schedule is None or not await self._is_run(schedule, message, fire_time, revision):
            _log.info("%s: %s is not run", message.what, message.key)
            return None
        return await self._tracked(schedule, message, fire_time, call)

    def health(self) -> list[ScheduleHealth]:
        """Return how each schedule is, by name."""
        return [self._schedules[name].health(self._server.now()) for name in sorted(self._schedules)]

    async def _advance(self, schedule: CronSchedule, planned: CronPlan) -> None:
        if planned.next_at is not None:
            await self._store_message(schedule, planned.next_at)
        schedule.advance(planned, self._server.now())
        await self._write_row(schedule)

    async def _store_message(self, schedule: CronSchedule, at: float) -> None:
        key, time = fire_time_key(schedule.name, at, schedule.row.revision), datetime.fromtimestamp(at, UTC)
        try:
            await self._leader.tell(schedule.handler, time, key=key, deliver_at=schedule.due(at))
        except DuplicateKey as error:
            _log.error(
                "%s.%s: a fire time is left to who used its key: %s", schedule.row.singleton, schedule.name, error
            )
        except PersistenceError:
            raise
        except ActorhubError as error:
            raise PersistenceError(f"the message {key} could not be stored: {error}") from error

    async def _write_row(self, schedule: CronSchedule) -> None:
        """Write the row; where an operator changed it meanwhile, go by what the operator said."""
        schedule.is_dirty = False
        try:
            stored = await self._store.keep_schedule(self._leadership, schedule.row)
        except BaseException:
            schedule.is_dirty = True
            raise
        schedule.merge(stored)

    async def _is_run(self, schedule: CronSchedule, message: DurableMessage, fire_time: float, revision: int) -> bool:
        """Whether to run the fire_time; one that began in an earlier run of the message goes on, come what may."""
        row = schedule.row
        is_current = revision == row.revision
        if message.attempts > 1 or (is_current and row.last_at is not None and fire_time <= row.last_at):
            return True
        reason = ""
        if is_current and schedule.has(fire_time):
            reason = schedule.why_skipped(fire_time, self._server.now())
            if not reason and await self._is_held_up(schedule, fire_time):
                reason = "an earlier run had not ended"
            if not reason:
                return True
        if (await self._checkpoints.progress_of(message)).saved:
            return True
        if reason:
            schedule.skip(reason, fire_time)
            self._leader.on_run_counted()
        return False

    async def _tracked(
        self,
        schedule: CronSchedule,
        message: DurableMessage,
        fire_time: float | None,
        call: Callable[[], Awaitable[Any]],
    ) -> Any:
        began = self._clock.monotonic()
        schedule.on_started(fire_time, message.message_id, self._server.now())
        self._leader.on_execution_started(schedule.name)
        if not isinstance(message.events, CountedRuns):
            message.events = CountedRuns(message.events, schedule, fire_time, self._leader.on_run_counted)
        error: BaseException | None = None
        try:
            return await call()
        except BaseException as exc:
            error = exc
            raise
        finally:
            seconds = self._clock.monotonic() - began
            schedule.on_ended(seconds, self._server.now())
            self._leader.on_execution_ended(seconds, error)

    async def _is_held_up(self, schedule: CronSchedule, fire_time: float) -> bool:
        """Whether an earlier fire_time of a schedule whose runs may not overlap began here and waits for its next run."""
        for earlier, message_id in list(schedule.begun.items()):
            if earlier == fire_time:
                continue
            row = await self._messages.find(message_id)
            if row is not None and row.reply is None:
                return True
            schedule.begun.pop(earlier, None)
        return False
