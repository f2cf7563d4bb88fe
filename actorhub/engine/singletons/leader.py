"""The leader of one singleton: keeps it alive while this runner owns its shard.

`SingletonLeader.supervise` is level-triggered. It registers the leader in the store, opens the activation, waits until
that is over and starts again, for as long as the shard is owned. An activation that fails, a refused commit and a store
that is away all end in this one loop, so none of them needs a way back of its own. Heartbeat, main loop and schedules
are tended in a second loop, one per activation.

At most one activation is led at a time, in the whole cluster and in this process:

- Between runners, the shard decides. A hand-over waits until the leader has written that it left; a former leader that
  was cut off commits nothing, because its epoch is out of date.
- Within this process, the supervision of a new leadership waits for that of the former one, and within one leadership
  an activation is opened only after everything of the one before it has ended.
"""

import asyncio
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.envelope import Durable
from actorhub.core.errors import (
    ActorhubError,
    PersistenceError,
    ShuttingDown,
    SingletonErrorReason,
)
from actorhub.core.idempotency import payload_hash
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of
from actorhub.engine.model.records import (
    ACTIVE,
    DEAD,
    Cell,
    HostedShard,
    HostedType,
)
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.runs.failures import handler_failed, log_failure
from actorhub.engine.singletons.cron_chain import CronChain
from actorhub.engine.singletons.health import HEARTBEAT, SingletonHealth, health_of, is_stale
from actorhub.engine.singletons.own_messages import FireTimeTell, MainLoop
from actorhub.engine.singletons.restarts import Restarts
from actorhub.engine.singletons.services import LeaderServices
from actorhub.engine.supervision import set_or_time, store_call
from actorhub.storage.checkpoint_ports import BODY, Scope
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import Execution, Leadership

_log: Final = get_logger("actorhub.singletons")

LOSS_LIMIT: Final = 5.0
"""Seconds that `on_lose_leadership` may take. Handlers get as long to end before it if leadership is lost by force."""
_RETRY: Final = 1.0
"""Seconds until the next attempt after the store failed."""
_WRITE_PAUSE: Final = 0.5
"""Seconds between writes of executions, at the least."""
_QUIET_POLL: Final = 0.005
"""Seconds between checks of whether an ended activation has become quiet."""
_BACKOFF: Final = Backoff(initial=0.1, maximum=30.0)
_DEATH_BACKOFF: Final = Backoff(initial=0.5, maximum=30.0)


class SingletonLeader:
    """Leads one singleton for as long as this runner owns its shard at one epoch.

    `supervise` makes and ends activations. The other methods are told what has happened, or asked.
    """

    def __init__(
        self,
        services: LeaderServices,
        hosted_type: HostedType,
        shard: HostedShard,
        *,
        former: "asyncio.Task[None] | None",
        restarts: Restarts,
    ) -> None:
        """Prepare.

        Args:
            services: The runner's parts.
            hosted_type: The singleton's type.
            shard: Its shard, at the epoch of this leadership.
            former: The supervision of this runner's last leadership of the singleton. It may not have ended yet.
            restarts: The pauses of the singleton's `run` in this process.
        """
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
        self.schedules = CronChain(
            services, spec=hosted_type.spec, leadership=self.leadership, tell=self._tell, executions=self
        )
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the store knows that this runner leads; cancelled if that will never be."""
        self.elsewhere: asyncio.Future[ShardId] = asyncio.get_running_loop().create_future()
        """Done while another release leads it in another shard: this leader waits for the end of that."""
        self.cell: Cell | None = None
        """The activation that leads: its `on_become_leader` has returned, its `on_lose_leadership` has not begun."""
        self.abandoned: Cell | None = None
        """An activation of which something still runs that swallowed its cancellation, and is not waited for."""
        self._tasks: dict[Cell, list[asyncio.Task[None]]] = {}
        """The tasks that make, tend and end each activation, hooks included."""
        self._loss: asyncio.Task[None] | None = None
        """The task that runs `on_lose_leadership`."""
        self._since: float | None = None
        self._heartbeat_at: float | None = None
        self._granted_at = clock.monotonic()
        self._sign_of_life_at: float | None = None
        """The last sign of life, possibly a former leader's, in monotonic seconds: steps of the clock do not age it."""
        self._failures = 0
        self._restarts = restarts
        self._main_loop_at: float | None = None
        """When to start `run`, in monotonic seconds; `None` if it is running, or not to be started."""
        self._main_loop_began = self._beat_at = self._written_at = 0.0
        self._is_dirty = self._is_stopping = False
        self._changed = asyncio.Event()
        """Wakes `supervise`."""
        self._wake = asyncio.Event()
        """Wakes the loop that tends the activation."""

    @property
    def spec(self) -> EntitySpec:
        """What the code declares about the singleton."""
        return self._hosted_type.spec

    async def supervise(self) -> None:
        """Keep the singleton alive for as long as its shard is owned, then wait for its end and write that it left."""
        if self._former is not None:
            # This runner may lose a shard and get it back at the next epoch while handlers of the old activation are
            # still being cancelled. The old `on_lose_leadership` must come before the new `on_become_leader`. The wait
            # is bounded, so that a hook that hangs does not keep the singleton down.
            await asyncio.wait((self._former,), timeout=3 * LOSS_LIMIT)
            self._former = None
        while self._is_owner:
            if not self.registered.done():
                await self._register()
                continue
            await self._until_gone(self._services.open(self._hosted_type, self._shard))
            if self._is_owner:
                self._failures += 1
                await self._pause(_BACKOFF.delay(self._failures, self._clock.random()))
        if not self.registered.done():
            self.registered.cancel()
        # An activation that was never led here, but resides in this shard, was made by a message.
        if (left := self.cell or self._resident) is not None:
            await self._until_gone(left)
        await self._leave()

    def track_task(self, cell: Cell, task: "asyncio.Task[None]") -> None:
        """Take note of a task that makes, tends or ends an activation. It is waited for when the activation is over."""
        self._tasks.setdefault(cell, []).append(task)
        self._changed.set()

    def became(self, cell: Cell) -> None:
        """The activation's `on_become_leader` has returned, so it is owed an `on_lose_leadership`."""
        self.cell = cell

    def started(self, cell: Cell) -> None:
        """The activation takes messages from now on: start its main loop, and tend it."""
        if self.spec.main_loop is not None:
            self._main_loop_at = max(self._clock.monotonic(), self._restarts.not_before)
        self._beat_at = 0.0
        self._set(starts=0)
        self.track_task(cell, self._supervisor.loop("tend a singleton", partial(self._keep_tending, cell)))

    async def lose(self, cell: Cell) -> None:
        """Run `on_lose_leadership`, exactly once for each `on_become_leader` that returned, and wait for it.

        Two may ask for it at once: `Activations`, which passivates the activation, and `supervise`, which waits for its
        end. The first one finds the activation leading and starts the hook, without an `await` in between; the other
        one waits for the same task. The wait is bounded by `LOSS_LIMIT`.
        """
        if self.cell is cell:
            self.cell = None
            self._settle_main_loop()
            if self.spec.on_lose_leadership is not None:
                self._loss = self._supervisor.spawn(self._run_loss(cell), "on_lose_leadership")
        if self._loss is not None:
            await asyncio.wait((self._loss,), timeout=LOSS_LIMIT)
            if not self._loss.done():
                _log.error("singleton %s: on_lose_leadership was cancelled after %g s", self.spec.name, LOSS_LIMIT)
                self._loss.cancel()
            self._loss = None

    def on_gone(self) -> None:
        """An activation has ended, or could not be made."""
        self._changed.set()

    def stop(self) -> None:
        """Make no further activation: the shard is being handed over, or was lost."""
        self._is_stopping = True
        self._changed.set()
        self._wake.set()

    def poll(self) -> None:
        """Have the schedules read what operators have changed."""
        self.schedules.poll()
        self._wake.set()

    def state_error(self, reason: SingletonErrorReason, text: str) -> None:
        """Count a failure to load, decode or store the state."""
        errors = self.execution.state_errors + 1
        self._set(state_errors=errors, state_error=f"{reason}: {text}"[:1000])
        _log.error("singleton %s: %s: %s", self.spec.name, reason, text)

    def on_execution_started(self, what: str) -> None:
        """An execution has begun; `what` is the name of its schedule, or `run`."""
        now = self._server.now()
        self._set(executions=self.execution.executions + 1, last_execution=what, last_execution_at=now)

    def on_execution_ended(self, seconds: float, error: BaseException | None) -> None:
        """It has ended."""
        if error is None:
            self._set(last_duration=seconds, last_error="")
        else:
            now = self._server.now()
            text = summary_of(error)[:1000]
            self._set(last_duration=seconds, last_error=text, last_error_at=now)

    def on_run_counted(self) -> None:
        """The row of a schedule has changed and is to be written."""
        self._wake.set()

    def on_main_loop_ended(self, error: ActorhubError | None, *, cut_short: bool = False) -> None:
        """`run` has returned, failed or been cut short. If it failed while the singleton leads, it is started again."""
        # `lose` has settled it already, or the activation that it belonged to is not the present one.
        if self.execution.body != "running":
            return
        seconds = self._clock.monotonic() - self._main_loop_began
        # Also if it was cut short because its shard was lost: perhaps it was a commit of its own that was refused.
        has_failed = error is not None and not self._shard.draining
        pause = self._restarts.on_failed(seconds, _BACKOFF) if has_failed else 0.0
        if cut_short:
            self._set(body="", last_duration=seconds)
            return
        self.on_execution_ended(seconds, error)
        if error is None:
            self._restarts.on_returned()
            self._set(body="returned")
        elif self.cell is not None and self.cell.phase == ACTIVE:
            self._main_loop_at = self._restarts.not_before
            self._set(body="failed")
            _log.warning("singleton %s: run() failed and will start again in %.3g s: %s", self.spec.name, pause, error)
        else:
            self._set(body="")

    def on_main_loop_taken_back(self) -> None:
        """`run` could not start: start it again if its activation goes on."""
        self._main_loop_at = self._clock.monotonic()
        self._settle_main_loop()

    def health(self) -> SingletonHealth:
        """Return the health of the singleton."""
        since = self._server.now() if self._since is None else self._since
        now = self._clock.monotonic()
        stale = is_stale(heartbeat_at=self._sign_of_life_at, since=self._granted_at, now=now)
        return health_of(
            self.leadership,
            self.execution,
            since=since,
            heartbeat_at=self._heartbeat_at,
            stale=stale,
            state=self._state,
            schedules=self.schedules.health(),
            has_main_loop=self.spec.main_loop is not None,
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
        """Write that this runner leads, or wait a little before the next attempt.

        Activations wait for `registered`, so no handler runs before the store knows the leader and before the schedules
        are known. Without the schedules, a message of a fire time would be taken for one of a schedule that was
        deleted, and dropped.
        """
        try:
            home = await self._services.led_elsewhere(self.leadership)
            if self.elsewhere.done():
                self.elsewhere = asyncio.get_running_loop().create_future()
            if home is not None:
                self.elsewhere.set_result(home)
                await self._wait(_RETRY)
                return
            address = self._services.address
            row, now = await self._store.lead(self.leadership, address, self.spec.state_ttl)
            self._server.observe_time(now)
            self._since, self._heartbeat_at = row.since, row.heartbeat_at
            alive_at = row.since if row.heartbeat_at is None else row.heartbeat_at
            self._sign_of_life_at = self._clock.monotonic() - (now - alive_at)
            self.execution = msgspec.structs.replace(row.execution, body="")
            await self.schedules.load()
            await self._count_start()
        except PersistenceError as error:
            self._on_store_failed("its leader could not be registered", error)
            await self._wait(_RETRY)
            return
        self.registered.set_result(None)

    async def _count_start(self) -> None:
        """Store that this leader is about to start the singleton; its first heartbeat stores that it has.

        A hook that ends its process would end those of all runners, one after the other, as fast as they take over.
        """
        deaths = self.execution.starts
        if deaths > 1:
            pause = _DEATH_BACKOFF.delay(deaths - 1, self._clock.random())
            text = "singleton %s: %d leaders in a row have ended while they started it: starting in %.3g s"
            _log.error(text, self.spec.name, deaths, pause)
            await self._wait(pause)
        self.execution = msgspec.structs.replace(self.execution, starts=deaths + 1)
        await self._store.record(self.leadership, self.execution, heartbeat=False)

    async def _wait(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        while self._is_owner and self._clock.monotonic() < until:
            await self._until_changed(until)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next activation, unless a message makes one sooner."""
        until = self._clock.monotonic() + seconds
        while self._is_owner and self._resident is None and self._clock.monotonic() < until:
            await self._until_changed(until)

    async def _until_changed(self, until: float | None = None) -> None:
        self._changed.clear()
        await set_or_time(self._changed, None if until is None else until - self._clock.monotonic())

    async def _until_gone(self, cell: Cell) -> None:
        """Return once the activation is over, none of it runs and `on_lose_leadership` has returned.

        The waits are bounded, since a handler can resist its cancellation. What it still does cannot be committed: its
        cell is dead.
        """
        while cell.phase != DEAD:
            await self._until_changed()
        # A cell may be dead while a hook of it still runs: the shard was lost in the middle of it. `lose` below must
        # not call `on_lose_leadership` beside `on_become_leader`, or beside a handler.
        tasks = self._tasks.pop(cell, [])
        for task in tasks:
            self._supervisor.end(task)
        until = self._clock.monotonic() + (0.0 if cell is self.abandoned else LOSS_LIMIT)
        while self._clock.monotonic() < until and (  # noqa: ASYNC110 - once per activation
            self._runs_in(cell) or cell.streams or not all(task.done() for task in tasks)
        ):
            await asyncio.sleep(_QUIET_POLL)
        await self.lose(cell)

    def _runs_in(self, cell: Cell) -> bool:
        """Whether a handler of the activation runs. Turns do not tell: one may be kept while the store is asked."""
        return any(run.cell is cell for run in self._services.scheduler.suspended)

    async def _run_loss(self, cell: Cell) -> None:
        hook = self.spec.on_lose_leadership
        assert hook is not None
        try:
            await self._services.hooks.run(cell, hook, self._services.hooks.context())
        except Exception as exc:  # noqa: BLE001 - user code: a failing hook does not hold up the next leader
            log_failure(_log, f"singleton {self.spec.name}: on_lose_leadership failed", exc, handler_failed(exc))

    async def _leave(self) -> None:
        """Write the last rows, and that nobody leads, if this runner still owns the shard, as in a hand-over."""
        if not self._owns or self.registered.cancelled():
            return
        try:
            await store_call(self._supervisor, self._write_last(), "note that a leader leaves", LOSS_LIMIT)
        except (PersistenceError, ShuttingDown) as error:
            _log.warning("singleton %s: the end of its leadership could not be written: %s", self.spec.name, error)

    async def _write_last(self) -> None:
        self._set(starts=0)
        await self.schedules.write()
        await self._write(heartbeat=False, leaves=True)

    async def _keep_tending(self, cell: Cell) -> None:
        """Do what is due until the activation is over."""
        began = self._clock.monotonic()
        while cell.phase == ACTIVE and self._is_owner:
            self._wake.clear()
            try:
                pause = await self._tend(cell)
            except PersistenceError as error:
                self._on_store_failed("its schedules or its heartbeat could not be written", error)
                await asyncio.sleep(_RETRY)
                continue
            # An activation that has been well for that long makes up for those that failed before it.
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
            await self._write(heartbeat=True)
            self._beat_at = now + HEARTBEAT
        elif self._is_dirty and self._written_at + _WRITE_PAUSE <= now:
            await self._write(heartbeat=False)
        due = [self._beat_at - now]
        if (schedule := await self.schedules.step()) is not None:
            due.append(schedule)
        if self._main_loop_at is not None:
            due.append(self._main_loop_at - now)
        if self._is_dirty:
            due.append(self._written_at + _WRITE_PAUSE - now)
        return max(min(due), 0.001)

    async def _start_main_loop(self, cell: Cell) -> None:
        spec = self.spec.main_loop
        assert spec is not None
        progress = await self._services.checkpoints.load(Scope(self.spec.name, cell.entity_id, BODY))
        if cell.phase != ACTIVE:
            return  # it ended during the read; the next activation starts its own `run`
        self._main_loop_at = None
        self._main_loop_began = self._clock.monotonic()
        self.on_execution_started("run")
        self._set(body="running")
        self._services.scheduler.enqueue(cell, MainLoop(self, spec, cell, progress))

    def _settle_main_loop(self) -> None:
        if self.execution.body == "running":
            self._set(body="")

    async def _write(self, *, heartbeat: bool, leaves: bool = False) -> None:
        # Before the write, not after it: what changes while the write is under way is to be written by the next one.
        self._is_dirty = False
        self._written_at = self._clock.monotonic()
        try:
            now = await self._store.record(self.leadership, self.execution, heartbeat=heartbeat, leaves=leaves)
        except PersistenceError:
            self._is_dirty = True
            raise
        self._server.observe_time(now)
        if heartbeat:
            self._heartbeat_at, self._sign_of_life_at = now, self._written_at

    async def _tell(self, spec: HandlerSpec, at: datetime, *, key: str, deliver_at: float) -> None:
        delivery = Durable(key=key, deliver_at=deliver_at, payload_hash=payload_hash((at,)))
        number = self._services.new_id()
        told = FireTimeTell(spec, self.leadership.entity_id, message_id=number, at=at, delivery=delivery)
        self._services.accept(told, self._shard)
        await told.future

    def _on_store_failed(self, what: str, error: PersistenceError) -> None:
        # The store knows another owner. If this runner still believes that it owns the shard, that has to be checked.
        if isinstance(error, Fenced) and self._owns:
            self._services.mistrust(self._shard.id)
        _log.warning("singleton %s: %s, next attempt in %g s: %s", self.spec.name, what, _RETRY, error)

    def _set(self, **what: Any) -> None:
        self.execution = msgspec.structs.replace(self.execution, **what)
        self._is_dirty = True
        self._wake.set()
