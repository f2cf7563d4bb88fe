"""The schedules of a led singleton, each a chain of durable messages: one per fire time, stored before it is due.

The row of a schedule names its next fire time. The message of that fire time is stored first, under a key made of
schedule, fire time and revision, and the row after it. Both are separate commits, and the leader may be lost between
them. The next leader goes on from the row, so at worst it stores the same message again, and the key makes that the
same message: no fire time is stored twice. And the row never names a later fire time before the message of the present
one is stored: none is left out. The store keeps the key for longer than the fire time could still run.

A new or changed schedule has no fire time to go on from. Its row is written first, with the time from which to plan. If
the leader is lost before the first message is stored, the next one plans from the same time, however late it is.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from actorhub.core.cron import CronPlan, fire_time_key, parse_fire_time_key, parse_run_now_key
from actorhub.core.errors import ActorhubError, DuplicateKey, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.run import Run
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.singletons.cron_runs import CountedRuns
from actorhub.engine.singletons.cron_schedule import CronSchedule
from actorhub.engine.singletons.health import ScheduleHealth
from actorhub.engine.singletons.services import LeaderServices
from actorhub.storage.singleton_ports import Leadership

_log: Final = get_logger("actorhub.cron")

_EARLIEST: Final = 0.001


class Teller(Protocol):
    """Stores the message of a fire time, once per key."""

    def __call__(self, spec: HandlerSpec, at: datetime, *, key: str, deliver_at: float) -> Awaitable[None]:
        """Return once the message is stored."""
        ...


class Executions(Protocol):
    """Is told of executions: runs of schedules, and of the main loop."""

    def on_execution_started(self, what: str) -> None:
        """An execution has begun; `what` is the name of its schedule, or `run`."""
        ...

    def on_execution_ended(self, seconds: float, error: BaseException | None) -> None:
        """It has ended."""
        ...

    def on_run_counted(self) -> None:
        """The row of a schedule has changed, for `CronChain.step` to write."""
        ...


class CronChain:
    """Plans and runs the schedules of one singleton, for its leader. `load` must have returned before anything else."""

    def __init__(
        self,
        services: LeaderServices,
        *,
        spec: EntitySpec,
        leadership: Leadership,
        tell: Teller,
        executions: Executions,
    ) -> None:
        self._declared = {
            str(cron.name): (handler, cron) for handler in spec.handlers.values() for cron in handler.crons
        }
        self._leadership = leadership
        self._store = services.store
        self._messages = services.messages
        self._checkpoints = services.checkpoints
        self._clock = services.clock
        self._server = services.server
        self._tell = tell
        self._executions = executions
        self._schedules: dict[str, CronSchedule] = {}
        self._must_load = False

    def poll(self) -> None:
        """Read at the next step what operators have changed."""
        self._must_load = True

    async def load(self) -> None:
        """Join the declared schedules with the stored ones, and delete the rows of those that are no longer declared.

        Raises:
            PersistenceError: The store failed, or the shard was lost.
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
        """Do what is due; return the seconds until something is due next, or `None` if there are no schedules.

        Raises:
            PersistenceError: The store failed, or the shard was lost. The next step continues from there.
        """
        if not self._declared:
            return None
        if self._must_load:
            await self.load()
        due: list[float] = []
        for schedule in self._schedules.values():
            if schedule.begin(self._server.now()):
                await self._write_row(schedule)
            if (planned := schedule.planned(self._server.now())) is not None:
                await self._advance(schedule, planned)
            elif schedule.is_dirty:
                await self._write_row(schedule)
            if (at := schedule.wakes_at(self._server.now())) is not None:
                due.append(at)
        return max(min(due) - self._server.now(), _EARLIEST) if due else None

    async def write(self) -> None:
        """Write the rows that have changed, before another runner leads.

        Raises:
            PersistenceError: The store failed, or the shard was lost.
        """
        for schedule in self._schedules.values():
            if schedule.is_dirty:
                await self._write_row(schedule)

    async def run(self, run: Run, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run the method for the fire time of a message, unless that is to be skipped.

        A message without the key of a fire time was sent by a person, and always runs.
        """
        message = run.message
        assert isinstance(message, DurableMessage)
        key = message.key or ""
        parsed = parse_fire_time_key(key)
        if parsed is None:
            by_person = self._schedules.get(parse_run_now_key(key) or "") or self._schedules[str(message.spec.cron)]
            return await self._tracked(by_person, message, None, call)
        name, fire_time, revision = parsed
        schedule = self._schedules.get(name)
        if schedule is None or not await self._is_run(schedule, run, fire_time, revision):
            _log.info("%s: the fire time of %s is not run", message.what, message.key)
            return None
        return await self._tracked(schedule, message, fire_time, call)

    def health(self) -> list[ScheduleHealth]:
        """Return the health of each schedule, sorted by name."""
        return [self._schedules[name].health(self._server.now()) for name in sorted(self._schedules)]

    async def _advance(self, schedule: CronSchedule, planned: CronPlan) -> None:
        # The message before the row: see the module's docstring.
        if planned.next_at is not None:
            await self._store_message(schedule, planned.next_at)
        schedule.advance(planned)
        await self._write_row(schedule)

    async def _store_message(self, schedule: CronSchedule, at: float) -> None:
        key, time = fire_time_key(schedule.name, at, schedule.row.revision), datetime.fromtimestamp(at, UTC)
        try:
            await self._tell(schedule.handler, time, key=key, deliver_at=schedule.due(at))
        except DuplicateKey as error:
            # Somebody sent a message of their own under this key. Failing here would be repeated forever and stop the
            # schedule, so the fire time is given up and the next one is planned.
            _log.error(
                "%s.%s: the fire time %s is left to another message with its key: %s",
                schedule.row.singleton,
                schedule.name,
                time,
                error,
            )
        except PersistenceError:
            raise
        except ActorhubError as error:
            raise PersistenceError(f"the message {key} could not be stored: {error}") from error

    async def _write_row(self, schedule: CronSchedule) -> None:
        """Write the row, and take over what an operator has changed in the meantime."""
        # Before the write, not after it: what changes while the write is under way is to be written by the next one.
        schedule.is_dirty = False
        try:
            stored = await self._store.keep_schedule(self._leadership, schedule.row)
        except BaseException:
            schedule.is_dirty = True
            raise
        schedule.merge(stored)

    async def _is_run(self, schedule: CronSchedule, run: Run, fire_time: float, revision: int) -> bool:
        """Return whether to run the fire time of a message.

        A fire time that began in an earlier run of its message always goes on: by now it may have done half of its
        work. It began if the message has more than one attempt, if the row says so, or if a step of it is stored, which
        resets the count of attempts. The last one costs a read, so it comes last.

        Otherwise a fire time runs if the present plan has it. Messages of an earlier revision are still in the store
        after an edit, and are not run. That is how an edit takes effect without a search for messages.
        """
        row, message = schedule.row, run.message
        assert isinstance(message, DurableMessage)
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
        if (await self._checkpoints.progress_of(run)).saved:
            return True
        if reason:
            schedule.skip(reason, fire_time)
            self._executions.on_run_counted()
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
        self._executions.on_execution_started(schedule.name)
        if not isinstance(message.events, CountedRuns):
            message.events = CountedRuns(message.events, schedule, fire_time, self._executions.on_run_counted)
        error: BaseException | None = None
        try:
            return await call()
        except BaseException as exc:
            error = exc
            raise
        finally:
            seconds = self._clock.monotonic() - began
            schedule.on_ended(seconds, self._server.now())
            self._executions.on_execution_ended(seconds, error)

    async def _is_held_up(self, schedule: CronSchedule, fire_time: float) -> bool:
        """Whether an earlier fire time of a schedule whose runs must not overlap began here and has not ended.

        It may wait for its next attempt, so that none of it runs at the moment; the store knows.
        """
        for earlier, message_id in list(schedule.begun.items()):
            if earlier == fire_time:
                continue
            row = await self._messages.find(message_id)
            if row is not None and row.reply is None:
                return True
            schedule.begun.pop(earlier, None)
        return False
