"""One led singleton: kept alive while this runner owns its shard, with its `run`, its schedules and its heartbeat."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import (
    ActorhubError,
    PersistenceError,
    RunnerUnavailable,
    ShuttingDown,
    SingletonErrorReason,
)
from actorhub.core.idempotency import payload_hash
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.records import (
    ACTIVE,
    DEAD,
    AwaitedMessage,
    Cell,
    HostedShard,
    HostedType,
    Message,
    RunKind,
)
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.ownership.session import store_call
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.runs.hooks import Hooks
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.singletons.cron_chain import Schedules
from actorhub.engine.singletons.health import HEARTBEAT, SingletonHealth, is_stale
from actorhub.engine.supervision import Supervisor, set_or_time
from actorhub.storage.checkpoint_ports import BODY, Scope
from actorhub.storage.message_ports import MessageStore
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import Execution, Leadership, SingletonStore

_log: Final = logging.getLogger("actorhub.singletons")

LOSS_LIMIT: Final = 5.0
"""Seconds that `on_lose_leadership` may take, and that handlers may take to end before it after a forced loss."""
_RETRY: Final = 1.0
"""Seconds until the next try after the store failed."""
_NOTE_PAUSE: Final = 0.5
"""Seconds between notes of executions."""
_QUIET_LOOK: Final = 0.005
_BACKOFF: Final = Backoff(initial=0.1, maximum=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderServices:
    """What a leader needs of its runner."""

    address: str
    incarnation: str
    shards: Mapping[ShardId, HostedShard]
    """Those that are owned now."""
    store: SingletonStore
    checkpoints: Checkpoints
    messages: MessageStore
    server: ServerClock
    clock: Clock
    supervisor: Supervisor
    scheduler: Scheduler
    hooks: Hooks
    open: Callable[[HostedType, HostedShard], Cell]
    """Returns the singleton's activation, made now if there is none."""
    accept: Callable[[Message, HostedShard], None]
    """Takes a durable message of an owned shard."""
    mistrust: Callable[[ShardId], None]
    """Told of a shard for which the store refused something: ownership must be checked."""
    new_id: Callable[[], int]
    """Returns the id of a new message."""


class MainLoopRun(Message):
    """One run of a singleton's `run`: nobody sent it, and its leader is told how it ends."""

    __slots__ = ("leader",)

    run_kind = RunKind.MAIN_LOOP

    def __init__(self, leader: "SingletonLeader", spec: HandlerSpec, cell: Cell, progress: Progress) -> None:
        super().__init__(spec, cell.entity_id)
        self.leader = leader
        self.args = ()
        self.waits_for_room = True
        self.progress = progress

    def on_not_started(self) -> bool:
        """End with its activation: the next one starts its own."""
        self.leader.main_loop_taken_back()
        return True

    def on_completed(self, body: bytes) -> None:
        """Note that it returned."""
        self.leader.main_loop_ended(None)

    def on_failed(self, error: ActorhubError) -> None:
        """Note that it failed, or was cut short with its activation."""
        is_over = self.cell is not None and self.cell.phase != ACTIVE
        self.leader.main_loop_ended(error, cut_short=is_over and isinstance(error, RunnerUnavailable))


class FireTimeTell(AwaitedMessage):
    """The tell of a fire time's message to the singleton's own mailbox."""

    __slots__ = ()

    def __init__(self, spec: HandlerSpec, entity_id: str, *, message_id: int, at: datetime, when: Durable) -> None:
        super().__init__(spec, entity_id, TELL)
        self.message_id = message_id
        self.body = spec.arguments.encode((at,))
        self.delivery = when


class SingletonLeader:
    """A singleton whose shard this runner owns.

    `supervise` sees to its activations; other methods note what happened.
    """

    def __init__(
        self,
        services: LeaderServices,
        hosted_type: HostedType,
        shard: HostedShard,
        former: "asyncio.Task[None] | None",
    ) -> None:
        """Prepare; `former` sees to who led here before, and perhaps is not done yet."""
        assert hosted_type.spec.singleton_id is not None
        self._services = services
        self._hosted_type = hosted_type
        self._shard = shard
        self._former = former
        self._supervisor = services.supervisor
        self._clock = clock = services.clock
        self._server = services.server
        self._store = services.store
        self.leadership = Leadership(
            singleton=hosted_type.spec.name,
            entity_id=hosted_type.spec.singleton_id,
            shard=shard.id,
            epoch=shard.epoch,
            incarnation=services.incarnation,
        )
        self.execution = Execution()
        self.schedules = Schedules(
            spec=hosted_type.spec,
            leadership=self.leadership,
            store=self._store,
            messages=services.messages,
            checkpoints=services.checkpoints,
            clock=clock,
            server=services.server,
            tell=self._tell,
            executions=self,
        )
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the store knows who leads; cancelled if that will never be."""
        self.cell: Cell | None = None
        """The activation that leads: its `on_become_leader` returned, its `on_lose_leadership` has not begun."""
        self._tasks: dict[Cell, list[asyncio.Task[None]]] = {}
        """What makes, tends and ends activations, hooks included."""
        self._loss: asyncio.Task[None] | None = None
        """Runs `on_lose_leadership`."""
        self._since: float | None = None
        self._heartbeat_at: float | None = None
        self._granted_at = clock.monotonic()
        self._sign_at: float | None = None
        """Monotonic seconds of the last sign of life, a former leader's too: steps of the clock do not age it."""
        self._failures = 0
        self._main_loop_failures = 0
        self._main_loop_at: float | None = None
        """Monotonic seconds when `run` starts, again; `None`: it runs, or is not to."""
        self._main_loop_began = 0.0
        self._beat_at = 0.0
        self._noted_at = 0.0
        self._is_dirty = False
        self._is_stopping = False
        self._changed = asyncio.Event()
        """Wakes `supervise`."""
        self._wake = asyncio.Event()
        """Wakes whoever tends the singleton."""

    @property
    def spec(self) -> EntitySpec:
        """What the code says of the singleton."""
        return self._hosted_type.spec

    async def supervise(self) -> None:
        """Keep the singleton alive for as long as its shard is owned; then see it off."""
        if self._former is not None:
            # Two leaders must not overlap: the former one's `on_lose_leadership` comes first.
            await asyncio.wait((self._former,), timeout=3 * LOSS_LIMIT)
            self._former = None
        while self._is_owner:
            if not self.registered.done():
                await self._register()
                continue
            await self._see_off(self._services.open(self._hosted_type, self._shard))
            if self._is_owner:
                self._failures += 1
                await self._rest(_BACKOFF.delay(self._failures, self._clock.random()))
        if not self.registered.done():
            self.registered.cancel()
        if (left := self.cell or self._resident) is not None:
            await self._see_off(left)
        await self._leave()

    def track_task(self, cell: Cell, task: "asyncio.Task[None]") -> None:
        """`task` makes an activation, on behalf of `supervise` or of a message, or tends or ends it."""
        self._tasks.setdefault(cell, []).append(task)
        self._changed.set()

    def became(self, cell: Cell) -> None:
        """The activation's `on_become_leader` returned: it is owed an `on_lose_leadership`."""
        self.cell = cell

    def started(self, cell: Cell) -> None:
        """The activation takes messages from now on."""
        if self.spec.main_loop is not None:
            self._main_loop_at = self._clock.monotonic()
        self._beat_at = 0.0
        self.track_task(cell, self._supervisor.loop("tend a singleton", partial(self._tend_to, cell)))

    async def lose(self, cell: Cell) -> None:
        """Run `on_lose_leadership`, once for each `on_become_leader` that returned; or wait for it. Bounded."""
        if self.cell is cell:
            self.cell = None
            self._settle_main_loop()
            if self.spec.on_lose_leadership is not None:
                self._loss = self._supervisor.spawn(self._run_loss(cell), "on_lose_leadership")
        if self._loss is not None:
            await asyncio.wait((self._loss,), timeout=LOSS_LIMIT)
            if not self._loss.done():
                _log.error("singleton %s: on_lose_leadership did not end within %g s", self.spec.name, LOSS_LIMIT)
                self._loss.cancel()
            self._loss = None

    def on_gone(self) -> None:
        """An activation is over, or could not be made."""
        self._changed.set()

    def stop(self) -> None:
        """The shard is on its way to another runner, or lost: make no further activation."""
        self._is_stopping = True
        self._changed.set()
        self._wake.set()

    def poll(self) -> None:
        """Read soon what operators changed."""
        self.schedules.poll()
        self._wake.set()

    def state_error(self, reason: SingletonErrorReason, text: str) -> None:
        """Count a failure of the state."""
        errors = self.execution.state_errors + 1
        self._set(state_errors=errors, state_error=f"{reason}: {text}"[:1000])
        _log.error("singleton %s: %s: %s", self.spec.name, reason, text)

    def began(self, what: str) -> None:
        """A schedule, or `run`, runs."""
        now = self._server.now()
        self._set(executions=self.execution.executions + 1, last_execution=what, last_execution_at=now)

    def ended(self, seconds: float, error: BaseException | None) -> None:
        """It is over."""
        if error is None:
            self._set(last_duration=seconds, last_error="")
        else:
            now = self._server.now()
            text = f"{type(error).__name__}: {error}"[:1000]
            self._set(last_duration=seconds, last_error=text, last_error_at=now)

    def counted(self) -> None:
        """There is something to write of a schedule."""
        self._wake.set()

    def main_loop_ended(self, error: ActorhubError | None, *, cut_short: bool = False) -> None:
        """`run` returned, failed, or was cut short; if it failed while the singleton leads, it is started again."""
        if self.execution.body != "running":
            return
        seconds = self._clock.monotonic() - self._main_loop_began
        if cut_short:
            self._set(body="", last_duration=seconds)
            return
        self.ended(seconds, error)
        if error is None:
            self._set(body="returned")
        elif self.cell is not None and self.cell.phase == ACTIVE:
            self._main_loop_failures = 1 if seconds > _BACKOFF.maximum else self._main_loop_failures + 1
            pause = _BACKOFF.delay(self._main_loop_failures, self._clock.random())
            self._main_loop_at = self._clock.monotonic() + pause
            self._set(body="failed")
            _log.warning("singleton %s: run() failed and starts again in %.3g s: %s", self.spec.name, pause, error)
        else:
            self._set(body="")

    def main_loop_taken_back(self) -> None:
        """`run` could not start after all: it is started again if its activation goes on."""
        self._main_loop_at = self._clock.monotonic()
        self._settle_main_loop()

    def health(self) -> SingletonHealth:
        """Return how the singleton is."""
        since = self._server.now() if self._since is None else self._since
        now = self._clock.monotonic()
        stale = is_stale(heartbeat_at=self._sign_at, since=self._granted_at, now=now)
        schedules = self.schedules.health()
        run = self.execution
        never = run.last_execution_at is None and bool(schedules or self.spec.main_loop)
        return SingletonHealth(
            name=self.spec.name,
            entity_id=self.leadership.entity_id,
            shard=str(self._shard.id),
            epoch=self._shard.epoch,
            since=since,
            heartbeat_at=self._heartbeat_at,
            is_stale=stale,
            state=self._state,
            body=run.body,
            executions=run.executions,
            last_execution=run.last_execution,
            last_execution_at=run.last_execution_at,
            last_duration=run.last_duration,
            last_error=run.last_error,
            state_errors=run.state_errors,
            status="stale"
            if stale
            else "unhealthy"
            if run.body == "failed" or any(schedule.status == "overdue" for schedule in schedules)
            else "never executed"
            if never
            else "healthy",
            schedules=schedules,
        )

    @property
    def _state(self) -> Literal["starting", "leading", "failed", "stopping"]:
        if self._is_stopping:
            return "stopping"
        if self.cell is not None:
            return "leading"
        return "failed" if self._failures else "starting"

    @property
    def _owns(self) -> bool:
        return self._services.shards.get(self._shard.id) is self._shard

    @property
    def _is_owner(self) -> bool:
        return not self._is_stopping and self._owns

    @property
    def _resident(self) -> Cell | None:
        cell = self._hosted_type.cells.get(self.leadership.entity_id)
        return cell if cell is not None and cell.shard is self._shard else None

    async def _register(self) -> None:
        """Write who leads, or wait a little before the next try."""
        try:
            address = self._services.address
            row, now = await self._store.lead(self.leadership, address, self.spec.state_ttl)
            await self.schedules.load()  # before the first handler: an instant whose schedule is not known is not run
        except PersistenceError as error:
            self._failed("its leader could not be registered", error)
            until = self._clock.monotonic() + _RETRY
            while self._is_owner and self._clock.monotonic() < until:
                await self._until_changed(until)
            return
        self._server.observe_time(now)
        self._since, self._heartbeat_at = row.since, row.heartbeat_at
        self._sign_at = self._clock.monotonic() - (now - (row.since if row.heartbeat_at is None else row.heartbeat_at))
        self.execution = msgspec.structs.replace(row.execution, body="")
        self.registered.set_result(None)

    async def _rest(self, seconds: float) -> None:
        """Wait before the next activation, unless a message made one."""
        until = self._clock.monotonic() + seconds
        while self._is_owner and self._resident is None and self._clock.monotonic() < until:
            await self._until_changed(until)

    async def _until_changed(self, until: float | None = None) -> None:
        self._changed.clear()
        await set_or_time(self._changed, None if until is None else until - self._clock.monotonic())

    async def _see_off(self, cell: Cell) -> None:
        """Return once the activation is over and nothing of it runs any more, as far as that can be awaited."""
        while cell.phase != DEAD:
            await self._until_changed()
        tasks = self._tasks.pop(cell, [])
        for task in tasks:
            task.cancel()
        until = self._clock.monotonic() + LOSS_LIMIT
        while self._clock.monotonic() < until and (  # noqa: ASYNC110 - once per activation
            cell.load or cell.nested or cell.streams or not all(task.done() for task in tasks)
        ):
            await asyncio.sleep(_QUIET_LOOK)
        await self.lose(cell)

    async def _run_loss(self, cell: Cell) -> None:
        hook = self.spec.on_lose_leadership
        assert hook is not None
        try:
            await self._services.hooks.run(cell, hook, self._services.hooks.context())
        except Exception:  # noqa: BLE001 - user code: a failing hook does not hold up the next leader
            _log.exception("singleton %s: on_lose_leadership failed", self.spec.name)

    async def _leave(self) -> None:
        """Write what is known, and that nobody leads any more, if the shard is still there to be handed over."""
        if not self._owns or self.registered.cancelled():
            return
        try:
            await store_call(self._supervisor, self._last_notes(), "note that a leader leaves", LOSS_LIMIT)
        except (PersistenceError, ShuttingDown) as error:
            _log.warning("singleton %s: that its leader left could not be noted: %s", self.spec.name, error)

    async def _last_notes(self) -> None:
        await self.schedules.write()
        await self._note(heartbeat=False, leaves=True)

    async def _tend_to(self, cell: Cell) -> None:
        """See to what is due until the activation is over."""
        began = self._clock.monotonic()
        while cell.phase == ACTIVE and self._is_owner:
            self._wake.clear()
            try:
                pause = await self._tend(cell)
            except PersistenceError as error:
                self._failed("it could not be tended to", error)
                await asyncio.sleep(_RETRY)
                continue
            if self._clock.monotonic() - began > _BACKOFF.maximum:
                self._failures = 0
            await set_or_time(self._wake, pause)

    async def _tend(self, cell: Cell) -> float:
        """Do what is due; return the seconds until something is."""
        now = self._clock.monotonic()
        if self._main_loop_at is not None and self._main_loop_at <= now:
            await self._start_main_loop(cell)
        if self._beat_at <= now:
            self.schedules.poll()
            await self._note(heartbeat=True)
            self._beat_at = now + HEARTBEAT
        elif self._is_dirty and self._noted_at + _NOTE_PAUSE <= now:
            await self._note(heartbeat=False)
        due = [self._beat_at - now]
        if (schedule := await self.schedules.step()) is not None:
            due.append(schedule)
        if self._main_loop_at is not None:
            due.append(self._main_loop_at - now)
        if self._is_dirty:
            due.append(self._noted_at + _NOTE_PAUSE - now)
        return max(min(due), 0.001)

    async def _start_main_loop(self, cell: Cell) -> None:
        spec = self.spec.main_loop
        assert spec is not None
        progress = await self._services.checkpoints.load(Scope(self.spec.name, cell.entity_id, BODY))
        if cell.phase != ACTIVE:
            return
        self._main_loop_at = None
        self._main_loop_began = self._clock.monotonic()
        self.began("run")
        self._set(body="running")
        self._services.scheduler.enqueue(cell, MainLoopRun(self, spec, cell, progress))

    def _settle_main_loop(self) -> None:
        if self.execution.body == "running":
            self._set(body="")

    async def _note(self, *, heartbeat: bool, leaves: bool = False) -> None:
        self._is_dirty = False
        self._noted_at = self._clock.monotonic()
        try:
            now = await self._store.note(self.leadership, self.execution, heartbeat=heartbeat, leaves=leaves)
        except PersistenceError:
            self._is_dirty = True
            raise
        self._server.observe_time(now)
        if heartbeat:
            self._heartbeat_at, self._sign_at = now, self._noted_at

    async def _tell(self, spec: HandlerSpec, at: datetime, *, key: str, deliver_at: float) -> None:
        when = Durable(key=key, deliver_at=deliver_at, payload_hash=payload_hash((at,)))
        number = self._services.new_id()
        told = FireTimeTell(spec, self.leadership.entity_id, message_id=number, at=at, when=when)
        self._services.accept(told, self._shard)
        await told.future

    def _failed(self, what: str, error: PersistenceError) -> None:
        if isinstance(error, Fenced) and self._owns:
            self._services.mistrust(self._shard.id)
        _log.warning("singleton %s: %s: %s; trying again in %g s", self.spec.name, what, error, _RETRY)

    def _set(self, **what: Any) -> None:
        self.execution = msgspec.structs.replace(self.execution, **what)
        self._is_dirty = True
        self._wake.set()
