"""Making and ending activations: an entity's instance comes with its first message and goes when it is idle."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from actorhub.core.clock import Clock
from actorhub.core.codec import Codec
from actorhub.core.errors import ActorhubError, MalformedMessage, PersistenceError, SingletonError
from actorhub.engine.model.cell import ACTIVATING, ACTIVE, CLOSING, DEAD, Cell, StateRecord
from actorhub.engine.model.message import DONE, RUNNING, Message, running
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.runs.completion import Results, handler_failed
from actorhub.engine.runs.scheduler import Turns, run_in
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage

_log: Final = logging.getLogger("actorhub.activation")

_ATTEMPTS: Final = 4
_FIRST_DELAY: Final = 0.05
_HOOK_LIMIT: Final = 10.0
"""Seconds that `on_deactivate` may take."""


class Activations:
    """Builds instances with retries and ends them without ever having two alive.

    A message that comes while an activation closes waits in the cell and gets a fresh one.
    """

    def __init__(
        self, *, turns: Turns, results: Results, storage: Storage, supervisor: Supervisor, clock: Clock
    ) -> None:
        self._turns = turns
        self._results = results
        self._storage = storage
        self._supervisor = supervisor
        self._clock = clock
        self.gone: Callable[[Cell], None]
        """Told when a cell holds no instance any more; its queue is the receiver's to place."""
        self.activated = 0
        self.passivated = 0
        self.failed = 0

    def begin(self, cell: Cell) -> None:
        """Make the instance: at once where no I/O and no hook is needed, else in a task."""
        if cell.hosted.is_simple:
            try:
                cell.instance = self._turns.context.copy().run(cell.hosted.factory)
            except Exception as exc:  # noqa: BLE001 - user code: tried again, then the reply of what waits
                _log.warning("%s: its constructor failed: %r; trying again", cell.address, exc)
            else:
                self._ready(cell)
                return
        task = self._supervisor.spawn(self._activate(cell), "activate")
        if cell.hosted.spec.singleton_id is not None:
            cell.shard.host.singletons.works(cell, task)

    def close(self, cell: Cell) -> None:
        """Stop starting runs; passivate once nothing runs."""
        if cell.phase == ACTIVE:
            cell.phase = CLOSING
            for task in cell.streams or ():
                task.cancel()
            self.idle(cell)

    def idle(self, cell: Cell) -> None:
        """Passivate a closing cell if nothing runs in it any more."""
        if cell.phase != CLOSING or cell.instance is None or cell.load or cell.nested or cell.streams:
            return
        spec = cell.hosted.spec
        if spec.singleton_id is not None:
            work = self._deactivate_leader(cell)
            cell.shard.host.singletons.works(cell, self._supervisor.spawn(work, "passivate"))
        elif spec.on_deactivate is not None:
            _ = self._supervisor.spawn(self._deactivate(cell), "passivate")
        else:
            self._passivated(cell)

    async def _activate(self, cell: Cell) -> None:
        delay = _FIRST_DELAY
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._build(cell)
            except _Unwanted:
                cell.phase = DEAD
                self.gone(cell)
                return
            except Exception as exc:  # noqa: BLE001 - user code: tried again, then the reply of what waits
                if cell.phase == DEAD:
                    return
                if cell.hosted.spec.singleton_id is not None:
                    await cell.shard.host.singletons.lose(cell)
                cell.instance = None
                if attempt == _ATTEMPTS or isinstance(exc, _Undecodable):
                    self._give_up(cell, exc)
                    return
                _log.warning("%s: activation failed (attempt %d): %r; trying again", cell.address, attempt, exc)
                await asyncio.sleep(delay * (0.5 + self._clock.random()))
                delay *= 2
            else:
                return

    async def _build(self, cell: Cell) -> None:
        spec = cell.hosted.spec
        if spec.singleton_id is not None:
            await self._until_led(cell)
        state: Any = None
        if spec.state is not None:
            state = await self._load(cell, spec.state)
        if cell.phase == DEAD:
            return
        context = self._turns.context.copy()
        instance = context.run(cell.hosted.factory)
        if spec.state is not None:
            instance.state = state
        cell.instance = instance
        if spec.on_activate is not None:
            await self.run_hook(cell, spec.on_activate, context)
        if spec.singleton_id is not None:
            await self._become_leader(cell, context)
        if cell.phase == ACTIVATING:
            self._ready(cell)

    async def _until_led(self, cell: Cell) -> None:
        """Wait until the store knows that this runner leads.

        Raises:
            _Unwanted: it will not, or not for long.
        """
        led = cell.shard.host.singletons.led_in(cell)
        await asyncio.wait((led.registered,))
        if cell.phase == ACTIVATING and (led.registered.cancelled() or cell.shard.draining):
            raise _Unwanted

    async def _become_leader(self, cell: Cell, context: Context) -> None:
        if cell.phase == DEAD:
            return
        hook = cell.hosted.spec.on_become_leader
        led = cell.shard.host.singletons.led_in(cell)
        if hook is None:
            led.became(cell)
        else:
            await self.run_hook(cell, hook, context, returned=led.became)
        if cell.phase == ACTIVATING:
            led.up(cell)

    async def _load(self, cell: Cell, codec: Codec[Any]) -> Any:  # a state
        """Load the committed state; a singleton does without one that is too old or does not fit."""
        spec = cell.hosted.spec
        try:
            stored = await self._storage.load_state(spec.name, cell.entity_id)
        except PersistenceError as exc:
            if spec.singleton_id is None:
                raise
            cell.shard.host.singletons.led_in(cell).state_error("state_load_failed", str(exc))
            raise SingletonError("state_load_failed", str(exc)) from exc
        cell.record = StateRecord(0 if stored is None else stored.version, b"")
        if stored is None or (spec.state_ttl is not None and stored.age > spec.state_ttl):
            state = spec.initial_state()
        else:
            try:
                state = codec.decode(stored.data)
            except MalformedMessage as exc:
                if spec.singleton_id is None:
                    raise _Undecodable(f"{cell.address}: its stored state does not fit: {exc}") from exc
                cell.shard.host.singletons.led_in(cell).state_error("schema_decode_failed", str(exc))
                state = spec.initial_state()
        cell.record.data = codec.encode(state)
        return state

    async def run_hook(
        self, cell: Cell, spec: HandlerSpec, context: Context, returned: Callable[[Cell], None] | None = None
    ) -> None:
        """Run a hook like a handler: `current()` works, what it changed is committed, then what it told leaves.

        Of a dead cell nothing is committed, and nothing leaves.

        Args:
            cell: The entity.
            spec: The hook.
            context: Its context variables.
            returned: Told that the hook returned, before that is committed.
        """
        run = HookRun(cell, spec)
        context.run(running.set, run)
        try:
            await run_in(context, spec.function(cell.instance))
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the hook raised CancelledError, though nobody cancelled it") from exc
        if returned is not None:
            returned(cell)
        if cell.phase == DEAD:
            run.drop_outbox()
        else:
            data = None if cell.record is None else self._results.changed_state(cell)
            await self._results.runs.commit_part(run, cell, data)
        run.phase = DONE

    def _ready(self, cell: Cell) -> None:
        self.activated += 1
        cell.last_used = self._clock.monotonic()
        cell.phase = ACTIVE
        if cell.shard.draining:
            self.close(cell)
        else:
            self._turns.pump(cell)

    def _give_up(self, cell: Cell, exc: Exception) -> None:
        self.failed += 1
        _log.error("%s: activation failed for good", cell.address, exc_info=exc)
        error: ActorhubError = exc if isinstance(exc, ActorhubError) else handler_failed(exc)
        error.possibly_executed = False
        cell.phase = DEAD
        for message in cell.take_queue():
            message.phase = DONE
            message.failed(error)
        self.gone(cell)

    async def _deactivate_leader(self, cell: Cell) -> None:
        await cell.shard.host.singletons.lose(cell)
        await self._deactivate(cell)

    async def _deactivate(self, cell: Cell) -> None:
        hook = cell.hosted.spec.on_deactivate
        try:
            async with asyncio.timeout(_HOOK_LIMIT):
                if hook is not None and cell.phase == CLOSING:
                    await self.run_hook(cell, hook, self._turns.context.copy())
        except Exception:  # noqa: BLE001 - user code: a failing hook does not keep the entity in memory
            _log.exception("%s: on_deactivate failed; passivated all the same", cell.address)
        if cell.phase == CLOSING:
            self._passivated(cell)

    def _passivated(self, cell: Cell) -> None:
        self.passivated += 1
        cell.instance = None
        cell.phase = DEAD
        self.gone(cell)


class HookRun(Message):
    """A hook's run, for `current()`: nobody sent it, and nobody waits for it."""

    def __init__(self, cell: Cell, spec: HandlerSpec) -> None:
        super().__init__(spec, cell.entity_id)
        self.cell = cell
        self.epoch = cell.shard.epoch
        self.phase = RUNNING


class _Undecodable(PersistenceError):
    """The stored state cannot be decoded; trying again does not help."""


class _Unwanted(Exception):
    """The singleton is on its way to another runner."""
