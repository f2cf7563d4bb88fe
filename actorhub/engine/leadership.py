"""One led singleton: kept alive while this runner owns its shard, with its `run`, its schedules and its heartbeat."""

import asyncio
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorhub.core.clock import Clock
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, PersistenceError, SingletonErrorReason
from actorhub.core.idempotency import payload_hash
from actorhub.engine.activation import HookRun
from actorhub.engine.cell import ACTIVE, DEAD, Cell, HostedShard, HostedType
from actorhub.engine.checkpoints import Progress
from actorhub.engine.cron_chain import Schedules
from actorhub.engine.message import FOREVER, Message, running
from actorhub.engine.singleton_health import HEARTBEAT, SingletonHealth, is_stale
from actorhub.engine.spec import EntitySpec, HandlerSpec
from actorhub.engine.supervision import Backoff, set_or_time
from actorhub.engine.turns import run_in
from actorhub.storage.checkpoint_ports import BODY, Scope
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import Execution, Leadership

if TYPE_CHECKING:
    from typing import Literal

    from actorhub.engine.host import Host

_log: Final = logging.getLogger("actorhub.singletons")

LOSS_LIMIT: Final = 5.0
"""Seconds that `on_lose_leadership` may take, and that handlers may take to end before it after a forced loss."""
_RETRY: Final = 1.0
"""Seconds until the next try after the store failed."""
_NOTE_PAUSE: Final = 0.5
"""Seconds between notes of executions."""
_QUIET_LOOK: Final = 0.005
_BACKOFF: Final = Backoff(initial=0.1, maximum=30.0)


class BodyRun(Message):
    """One run of a singleton's `run`: nobody sent it, and its leader is told how it ends."""

    __slots__ = ("_led", "interleaving", "progress")

    def __init__(self, led: "Led", spec: HandlerSpec, cell: Cell, progress: Progress) -> None:
        super().__init__(spec, cell.entity_id)
        self._led = led
        self.args = ()
        self.deadline = FOREVER
        self.waits_for_room = True
        self.interleaving = None
        self.progress = progress

    def taken_back(self) -> bool:
        """End with its activation: the next one starts its own."""
        return True

    def completed(self, body: bytes) -> None:
        """Note that it returned."""
        self._led.body_ended(None)

    def failed(self, error: ActorhubError) -> None:
        """Note that it failed."""
        self._led.body_ended(error)


class InstantTell(Message):
    """The tell of an instant's message to the singleton's own mailbox."""

    __slots__ = ("future",)

    def __init__(self, spec: HandlerSpec, entity_id: str, message_id: int, at: datetime, when: Durable) -> None:
        super().__init__(spec, entity_id, TELL)
        self.message_id = message_id
        self.body = spec.arguments.encode((at,))
        self.durable = when
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def completed(self, body: bytes) -> None:
        """It is stored."""
        if not self.future.done():
            self.future.set_result(body)

    def failed(self, error: ActorhubError) -> None:
        """It is not."""
        if not self.future.done():
            self.future.set_exception(error)


class Led:
    """A singleton whose shard this runner owns. `keep` owns it; the other methods note what happened and wake that."""

    def __init__(self, host: "Host", hosted: HostedType, shard: HostedShard, clock: Clock, incarnation: str) -> None:
        assert hosted.spec.singleton_id is not None
        self._host = host
        self._hosted = hosted
        self._shard = shard
        self._clock = clock
        self._store = host.storage.singletons
        self.leadership = Leadership(
            singleton=hosted.spec.name,
            entity_id=hosted.spec.singleton_id,
            shard=shard.id,
            epoch=shard.epoch,
            incarnation=incarnation,
        )
        self.execution = Execution()
        self.schedules = Schedules(
            spec=hosted.spec,
            leadership=self.leadership,
            store=self._store,
            clock=clock,
            now=host.delivery.schedule.server.now,
            tell=self._tell,
            executions=self,
        )
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the store knows who leads."""
        self.former: asyncio.Task[None] | None = None
        """Who led here before, and perhaps is not done yet."""
        self.cell: Cell | None = None
        """The activation that leads, from `on_become_leader` to `on_lose_leadership`."""
        self._since: float | None = None
        self._heartbeat_at: float | None = None
        self._failures = 0
        self._body_failures = 0
        self._body_at: float | None = None
        """Monotonic seconds when `run` starts, again; `None`: it runs, or is not to."""
        self._body_began = 0.0
        self._beat_at = 0.0
        self._noted_at = 0.0
        self._is_dirty = False
        self._is_stopping = False
        self._wake = asyncio.Event()

    @property
    def spec(self) -> EntitySpec:
        """What the code says of the singleton."""
        return self._hosted.spec

    async def keep(self) -> None:
        """Keep the singleton alive for as long as its shard is owned."""
        if self.former is not None and not self.former.done():
            await asyncio.wait((self.former,), timeout=3 * LOSS_LIMIT)
        self.former = None
        while self._is_owner:
            if not self.registered.done() and not await self._register():
                continue
            cell = self._host.open_singleton(self._hosted, self._shard)
            while self._is_owner and self.cell is not cell and cell.phase != DEAD:
                self._wake.clear()
                await self._wake.wait()
            if self.cell is cell:
                await self._lead(cell)
            await self._lost_by_force(cell)
            if self._is_owner:
                self._failures += 1
                await self._pause(_BACKOFF.delay(self._failures, self._clock.random()))
        if not self.registered.done():
            self.registered.cancel()

    def up(self, cell: Cell) -> None:
        """The activation is there, and `on_become_leader` returned."""
        cell.kept = True
        self.cell = cell
        self._wake.set()

    def gone(self, cell: Cell) -> None:
        """An activation is over, or could not be made."""
        self._wake.set()

    def stop(self) -> None:
        """The shard is on its way to another runner: make no further activation."""
        self._is_stopping = True
        self._wake.set()

    def look(self) -> None:
        """Read soon what operators changed."""
        self.schedules.look()
        self._wake.set()

    def stepped_down(self) -> None:
        """The activation's `on_lose_leadership` ran."""
        self.cell = None

    async def leave(self) -> None:
        """Write what is known, and that nobody leads any more."""
        self._settle_body()
        await self._note(heartbeat=False, leaves=True)

    def state_error(self, reason: SingletonErrorReason, text: str) -> None:
        """Count a failure of the state."""
        errors = self.execution.state_errors + 1
        self._set(state_errors=errors, state_error=f"{reason}: {text}"[:1000])
        _log.error("singleton %s: %s: %s", self.spec.name, reason, text)

    def began(self, what: str) -> None:
        """A schedule, or `run`, runs."""
        now = self._host.delivery.schedule.server.now()
        self._set(executions=self.execution.executions + 1, last_execution=what, last_execution_at=now)

    def ended(self, seconds: float, error: BaseException | None) -> None:
        """It is over."""
        if error is None:
            self._set(last_duration=seconds, last_error="")
        else:
            now = self._host.delivery.schedule.server.now()
            text = f"{type(error).__name__}: {error}"[:1000]
            self._set(last_duration=seconds, last_error=text, last_error_at=now)

    def body_ended(self, error: ActorhubError | None) -> None:
        """`run` returned or failed; if it failed while the singleton leads, it is started again."""
        if self.execution.body != "running":
            return
        self.ended(self._clock.monotonic() - self._body_began, error)
        if error is None:
            self._set(body="returned")
        elif self.cell is not None and self.cell.phase == ACTIVE:
            healthy = self._clock.monotonic() - self._body_began > _BACKOFF.maximum
            self._body_failures = 1 if healthy else self._body_failures + 1
            pause = _BACKOFF.delay(self._body_failures, self._clock.random())
            self._body_at = self._clock.monotonic() + pause
            self._set(body="failed")
            _log.warning("singleton %s: run() failed and starts again in %.3g s: %s", self.spec.name, pause, error)
        else:
            self._set(body="")

    def health(self) -> SingletonHealth:
        """Return how the singleton is."""
        now = self._host.delivery.schedule.server.now()
        since = now if self._since is None else self._since
        stale = is_stale(heartbeat_at=self._heartbeat_at, since=since, now=now)
        schedules = self.schedules.health()
        run = self.execution
        never = run.last_execution_at is None and bool(schedules or self.spec.body)
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
    def _state(self) -> "Literal['starting', 'leading', 'failed', 'stopping']":
        if self._is_stopping:
            return "stopping"
        if self.cell is not None:
            return "leading"
        return "failed" if self._failures else "starting"

    @property
    def _is_owner(self) -> bool:
        return not self._is_stopping and self._host.shards.get(self._shard.id) is self._shard

    async def _register(self) -> bool:
        """Write who leads; return whether it is written."""
        try:
            address = self._host.address
            row, now = await self._store.lead(self.leadership, address, self.spec.state_ttl)
        except PersistenceError as error:
            await self._failed("its leader could not be registered", error)
            return False
        self._host.delivery.schedule.server.heard(now)
        self._since, self._heartbeat_at = row.since, row.heartbeat_at
        self.execution = msgspec.structs.replace(row.execution, body="")
        self.registered.set_result(None)
        return True

    async def _lead(self, cell: Cell) -> None:
        """Tend the singleton until its activation is over."""
        began = self._clock.monotonic()
        if self.spec.body is not None:
            self._body_at = self._clock.monotonic()
        self._beat_at = 0.0
        while self.cell is cell and cell.phase == ACTIVE and self._is_owner:
            self._wake.clear()
            try:
                pause = await self._tend(cell)
            except PersistenceError as error:
                await self._failed("it could not be tended to", error)
                continue
            if self._clock.monotonic() - began > _BACKOFF.maximum:
                self._failures = 0
            await set_or_time(self._wake, pause)
        while self.cell is cell and cell.phase != DEAD:
            self._wake.clear()
            await self._wake.wait()

    async def _tend(self, cell: Cell) -> float:
        """Do what is due; return the seconds until something is."""
        now = self._clock.monotonic()
        if self._body_at is not None and self._body_at <= now:
            await self._start_body(cell)
        if self._beat_at <= now:
            self.schedules.look()
            await self._note(heartbeat=True)
            self._beat_at = now + HEARTBEAT
        elif self._is_dirty and self._noted_at + _NOTE_PAUSE <= now:
            await self._note(heartbeat=False)
        due = [self._beat_at - now]
        if (schedule := await self.schedules.step()) is not None:
            due.append(schedule)
        if self._body_at is not None:
            due.append(self._body_at - now)
        if self._is_dirty:
            due.append(self._noted_at + _NOTE_PAUSE - now)
        return max(min(due), 0.001)

    async def _start_body(self, cell: Cell) -> None:
        spec = self.spec.body
        assert spec is not None
        progress = Progress(Scope(self.spec.name, cell.entity_id, BODY))
        saved = await self._host.storage.checkpoints.load(progress.scope)
        progress.saved, progress.generation = dict(saved.checkpoints), saved.generation
        if cell.phase != ACTIVE:
            return
        self._body_at = None
        self._body_began = self._clock.monotonic()
        self.began("run")
        self._set(body="running")
        self._host.turns.enqueue(cell, BodyRun(self, spec, cell, progress))

    def _settle_body(self) -> None:
        if self.execution.body == "running":
            self._set(body="")

    async def _lost_by_force(self, cell: Cell) -> None:
        """Run `on_lose_leadership` of an activation that ended without it, once nothing of it runs any more."""
        if self.cell is not cell:
            return
        until = self._clock.monotonic() + LOSS_LIMIT
        while (cell.load or cell.nested or cell.streams) and self._clock.monotonic() < until:  # noqa: ASYNC110 - once per loss
            await asyncio.sleep(_QUIET_LOOK)
        self.cell = None
        self._settle_body()
        hook = self.spec.on_lose_leadership
        if hook is None:
            return
        context = self._host.turns.context.copy()
        context.run(running.set, HookRun(cell, hook))
        try:
            async with asyncio.timeout(LOSS_LIMIT):
                await run_in(context, hook.function(cell.instance))
        except Exception:  # noqa: BLE001 - user code: a failing hook does not hold up the next activation
            _log.exception("singleton %s: on_lose_leadership failed after leadership was lost", self.spec.name)

    async def _note(self, *, heartbeat: bool, leaves: bool = False) -> None:
        self._is_dirty = False
        self._noted_at = self._clock.monotonic()
        try:
            now = await self._store.note(self.leadership, self.execution, heartbeat=heartbeat, leaves=leaves)
        except PersistenceError:
            self._is_dirty = True
            raise
        self._host.delivery.schedule.server.heard(now)
        if heartbeat:
            self._heartbeat_at = now

    async def _tell(self, spec: HandlerSpec, at: datetime, *, key: str, deliver_at: float) -> None:
        when = Durable(key=key, deliver_at=deliver_at, payload_hash=payload_hash((at,)))
        told = InstantTell(spec, self.leadership.entity_id, self._host.singletons.new_id(), at, when)
        self._host.delivery.accept(told, self._shard)
        await told.future

    async def _failed(self, what: str, error: PersistenceError) -> None:
        if isinstance(error, Fenced):
            self._host.mistrusted(self._shard.id)
        _log.warning("singleton %s: %s: %s; trying again in %g s", self.spec.name, what, error, _RETRY)
        await self._pause(_RETRY)

    async def _pause(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        while self._is_owner and (left := until - self._clock.monotonic()) > 0:
            self._wake.clear()
            await set_or_time(self._wake, left)

    def _set(self, **what: Any) -> None:
        self.execution = msgspec.structs.replace(self.execution, **what)
        self._is_dirty = True
        self._wake.set()
