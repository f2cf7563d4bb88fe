"""Makes and ends activations: an entity's instance comes with its first message and goes when it is idle.

An activation runs code of the user: types of the state, the constructor, hooks. What it does is part of the call that
causes it: its calls continue that call's chain, and the run of a durable message is counted before.
"""

import asyncio
from contextvars import Context
from typing import Any, Final, Protocol

from actorhub.core.address import ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.carried import Carried
from actorhub.core.codec import Codec, copy_of
from actorhub.core.errors import (
    ActorhubError,
    CallCycle,
    ConfigurationError,
    EntityError,
    MalformedMessage,
    PersistenceError,
    SingletonError,
    SingletonErrorReason,
)
from actorhub.core.logger import get_logger
from actorhub.core.texts import is_of, only_error_in, summary_of
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import (
    ACTIVATING,
    ACTIVE,
    CLOSING,
    DEAD,
    DONE,
    PASSIVATING,
    Cell,
    Message,
    StateRecord,
)
from actorhub.engine.runs.background import BackgroundTasks
from actorhub.engine.runs.failures import handler_failed, log_failure, takes_outcome
from actorhub.engine.runs.hooks import Hooks, outside_tasks
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage, StoredState

_log: Final = get_logger("actorhub.activation")

_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(initial=0.05)
_MOST_NAMED: Final = 10
_HOOK_LIMIT: Final = 10.0
"""Seconds that `on_deactivate` may take."""


class Leader(Protocol):
    """Sees to one singleton while this runner owns its shard, and until its last activation is over."""

    def became(self, cell: Cell) -> None:
        """The activation's `on_become_leader` returned: it is owed an `on_lose_leadership`."""
        ...

    def started(self, cell: Cell) -> None:
        """The activation takes messages from now on."""
        ...


class Leaders(Protocol):
    """What an activation of a singleton needs of whoever sees to singletons."""

    def leader_of(self, cell: Cell) -> Leader:
        """Return the leader to which an activation belongs.

        Raises:
            NotConnected: the shard was lost.
        """
        ...

    def track_task(self, cell: Cell, task: "asyncio.Task[None]") -> None:
        """`task` makes or ends an activation: the next one waits for it."""
        ...

    async def until_leading(self, cell: Cell) -> bool:
        """Wait until the store knows that this runner leads; `False` if it will not, or not for long."""
        ...

    async def lose(self, cell: Cell) -> None:
        """Run `on_lose_leadership` of an activation that ends here, if that is due."""
        ...

    def state_error(self, cell: Cell, reason: SingletonErrorReason, text: str) -> None:
        """Count a failure of the state."""
        ...


class Homes(Protocol):
    """Knows where entities are at home, while runners disagree about it."""

    def check(self, cell: Cell) -> None:
        """Do nothing if the entity may be activated here, as far as is known without the store.

        Raises:
            Elsewhere: it may not.
        """
        ...

    async def settle(self, cell: Cell, home: ShardId) -> None:
        """Move what is stored of the entity from its home to the cell's shard.

        Raises:
            Elsewhere: it stays where it is.
            PersistenceError: the store failed.
        """
        ...

    async def send_away(self, cell: Cell, home: ShardId) -> None:
        """End an activation that must not exist here, and send what waits for it to the entity's home."""
        ...


class ActivationEvents(Protocol):
    """What activations tell and ask the host."""

    @property
    def homes(self) -> Homes:
        """Knows where entities are at home."""
        ...

    def count_first(self, cell: Cell) -> "asyncio.Future[None] | None":
        """Have the run of the first durable message in a mailbox counted.

        Returns:
            What to wait for before asking again; `None` once user code may run.
        """
        ...

    def on_gone(self, cell: Cell) -> None:
        """A cell no longer has an instance: find a place for its queue."""
        ...


class Elsewhere(Exception):
    """The entity is at home in another shard, and is activated there."""

    def __init__(self, shard: ShardId) -> None:
        super().__init__(str(shard))
        self.shard = shard


class Activations:
    """Builds instances, with retries, and ends them; an entity never has two at a time.

    A message that comes while an activation closes waits in the cell and gets a fresh activation.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        hooks: Hooks,
        background: BackgroundTasks,
        leaders: Leaders,
        storage: Storage,
        supervisor: Supervisor,
        events: ActivationEvents,
        max_message_bytes: int,
    ) -> None:
        """Prepare.

        Args:
            scheduler: Gives turns to what waits, once there is an instance.
            hooks: Runs code of the user.
            background: Ends with the activation.
            leaders: See to singletons.
            storage: Has the states.
            supervisor: Owns the tasks. Its clock has the random pauses, and says when an entity was last used.
            events: The host.
            max_message_bytes: Limit of an error.
        """
        self._scheduler = scheduler
        self._hooks = hooks
        self._background = background
        self._leaders = leaders
        self._storage = storage
        self._supervisor = supervisor
        self._clock = supervisor.clock
        self._events = events
        self._limit = max_message_bytes
        self._carrying: set[str] = set()
        self.activated = 0
        self.passivated = 0
        self.failed = 0

    def begin(self, cell: Cell, cause: Message | None) -> None:
        """Make the instance: at once if that takes neither I/O nor a hook, else in a task.

        Args:
            cell: The entity.
            cause: The message that needs it; `None` for a singleton that is made without one.
        """
        # In a shard that drains the cell would close before the message that it is for is in its mailbox.
        is_simple = cell.hosted_type.is_simple and not cell.shard.draining
        if is_simple and not isinstance(cause, DurableMessage):
            try:
                cell.instance = self._hooks.make(cell, self._hooks.context())
            except Exception as exc:  # noqa: BLE001 - user code: tried again, then the reply of what waits
                _log.warning("%s: its constructor failed: %s; trying again", cell.address, summary_of(exc))
            else:
                self._become_active(cell)
                return
        task = self._supervisor.spawn(self._activate(cell, cause), "activate")
        if cell.is_singleton:
            self._leaders.track_task(cell, task)

    def close(self, cell: Cell) -> None:
        """Start no further run but those that running handlers wait for; passivate once nothing runs."""
        if cell.phase == ACTIVE:
            cell.phase = CLOSING
            for producer in cell.streams or ():
                producer.stop()
            self.passivate_if_idle(cell)

    def passivate_if_idle(self, cell: Cell) -> None:
        """Passivate a closing cell if nothing runs in it any longer."""
        if cell.phase != CLOSING or cell.instance is None or cell.load or cell.nested or cell.streams:
            return
        if cell.is_singleton and self._scheduler.draining.is_needed(cell):
            return
        cell.phase = PASSIVATING
        spec = cell.hosted_type.spec
        if cell.is_singleton:
            work = self._deactivate_leader(cell)
            self._leaders.track_task(cell, self._supervisor.spawn(work, "passivate"))
        elif spec.on_deactivate is not None or cell in self._background:
            _ = self._supervisor.spawn(self._deactivate(cell), "passivate")
        else:
            self._finish_passivation(cell)

    async def _activate(self, cell: Cell, cause: Message | None) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._build(cell, cause)
            except _Unwanted:
                cell.phase = DEAD
                self._events.on_gone(cell)
                return
            except Elsewhere as elsewhere:
                await self._events.homes.send_away(cell, elsewhere.shard)
                return
            except Exception as exc:  # noqa: BLE001 - user code: tried again, then the reply of what waits
                if cell.phase == DEAD:
                    return  # Its shard was lost meanwhile, and whoever killed the cell has seen to its queue.
                if cell.is_singleton:
                    await self._leaders.lose(cell)
                cell.instance = None
                self._background.cancel(cell)
                if attempt == _ATTEMPTS or issubclass(type(only_error_in(exc)), _FINAL):
                    self._give_up(cell, exc)
                    return
                text = "%s: activation failed (attempt %d): %s; trying again"
                _log.warning(text, cell.address, attempt, summary_of(exc))
                await asyncio.sleep(_BACKOFF.delay(attempt, self._clock.random()))
            else:
                return

    async def _build(self, cell: Cell, cause: Message | None) -> None:
        # At each await the shard may be lost (DEAD). While it drains, the activation goes on to its end:
        # `_become_active` then closes it at once.
        spec = cell.hosted_type.spec
        self._events.homes.check(cell)
        if cell.is_singleton:
            is_leading = await self._leaders.until_leading(cell)
            if cell.phase == ACTIVATING and not is_leading:
                raise _Unwanted
        # A singleton is made without a message, too, so no message is to blame for what that does.
        is_counted = isinstance(cause, DurableMessage) and not cell.is_singleton
        stored = await self._load_at_home(cell, is_counted=is_counted)
        if cell.phase == DEAD:
            return
        state = None if spec.state is None else self._decode(cell, spec.state, stored)
        context = self._hooks.context()
        instance = self._hooks.make(cell, context)
        if spec.state is not None:
            instance.state = state
        cell.instance = instance
        chain = () if cause is None else cause.chain
        if spec.on_activate is not None:
            await self._hooks.run(cell, spec.on_activate, context, chain=chain)
        if cell.is_singleton:
            await self._become_leader(cell, context, chain)
        if cell.phase == ACTIVATING:
            self._become_active(cell)

    async def _load_at_home(self, cell: Cell, *, is_counted: bool) -> StoredState | None:
        """Load the committed state once the entity is at home here, and have the first run counted beside that."""
        while True:
            if is_counted:
                _ = self._events.count_first(cell)
            stored = None if cell.hosted_type.spec.state is None else await self._load(cell)
            if is_counted:
                await self._until_counted(cell)
            home = None if stored is None else stored.shard
            if home is None or home == cell.shard.id or cell.phase != ACTIVATING:
                return stored
            await self._events.homes.settle(cell, home)

    async def _until_counted(self, cell: Cell) -> None:
        """Wait until code of the user may run for what is first in the mailbox."""
        while cell.phase == ACTIVATING and (counting := self._events.count_first(cell)) is not None:
            await counting
        if cell.phase == ACTIVATING and cell.queue is None:
            # What it was for left: the store did not count its run, or has it no longer.
            raise _Unwanted

    async def _become_leader(self, cell: Cell, context: Context, chain: tuple[str, ...]) -> None:
        if cell.phase == DEAD:
            return
        hook = cell.hosted_type.spec.on_become_leader
        # Found before the hook runs: if the shard is lost during it, this leader still owes an `on_lose_leadership`.
        leader = self._leaders.leader_of(cell)
        if hook is None:
            leader.became(cell)
        else:
            await self._hooks.run(cell, hook, context, chain=chain, returned=leader.became)
        if cell.phase == ACTIVATING:
            leader.started(cell)

    async def _load(self, cell: Cell) -> StoredState | None:
        """Load the committed state; no code of the user runs."""
        try:
            return await self._storage.load_state(cell.hosted_type.spec.name, cell.entity_id)
        except PersistenceError as exc:
            if not cell.is_singleton:
                raise
            self._leaders.state_error(cell, "state_load_failed", str(exc))
            raise SingletonError("state_load_failed", str(exc)) from exc

    def _decode(self, cell: Cell, codec: Codec[Any], stored: StoredState | None) -> Any:  # a state
        """Return the state to start from; a singleton starts without one that is too old or does not fit."""
        spec = cell.hosted_type.spec
        cell.record = StateRecord(0 if stored is None else stored.version, b"")
        decoded: bytes | None = None
        if stored is None or (spec.state_ttl is not None and stored.age > spec.state_ttl):
            state = outside_tasks(spec.initial_state)
        else:
            try:
                state = codec.decode(stored.data)
                decoded = stored.data
            except MalformedMessage as exc:
                if not cell.is_singleton:
                    raise _Undecodable(f"{cell.address}: its stored state does not fit: {exc}") from exc
                self._leaders.state_error(cell, "schema_decode_failed", str(exc))
                state = outside_tasks(spec.initial_state)
        # What the state encodes to, not what is stored: a fresh or migrated state must not look changed by the first
        # run.
        cell.record.data = codec.encode(state)
        if decoded is not None and cell.record.data != decoded:
            cell.record.carried = Carried.find(state, decoded)
            self._log_carried(cell)
        return state

    def _log_carried(self, cell: Cell) -> None:
        """Say once for each type that another release has fields which this one keeps and does not see."""
        carried, name = cell.record.carried if cell.record is not None else None, cell.hosted_type.spec.name
        if carried is not None and name not in self._carrying:
            self._carrying.add(name)
            text = "%s: its stored state has fields that this release does not know, and keeps: %s"
            _log.info(text, cell.address, ", ".join(carried.names[:_MOST_NAMED]))

    def _become_active(self, cell: Cell) -> None:
        self.activated += 1
        cell.last_used = self._clock.monotonic()
        # `drain` closed the cells that were active; in a shard that drains this one was still being made.
        cell.phase = CLOSING if cell.shard.draining else ACTIVE
        first = None if cell.queue is None else cell.queue[0]
        if isinstance(first, DurableMessage) and first.is_counted and cell.next_runnable() is first:
            # A run that is counted starts even if the cell closes, or it would have used up its message's attempt.
            self._scheduler.start(first)
        self._scheduler.pump(cell)
        self.passivate_if_idle(cell)

    def _give_up(self, cell: Cell, exc: Exception) -> None:
        self.failed += 1
        failed = handler_failed(exc)
        log_failure(_log, f"{cell.address}: activation failed for good", exc, failed)
        only = only_error_in(exc)
        if is_of(only, _Undecodable):
            only = PersistenceError(only.message)  # Callers here get the public class, as those elsewhere do.
        error = only if is_of(only, ActorhubError) and takes_outcome(only, ran=False) else failed
        error.possibly_executed = False
        cell.phase = DEAD
        for message in cell.take_queue():
            message.phase = DONE
            message.on_failed(copy_of(only, self._limit, ran=False) if is_of(only, EntityError) else error)
        self._events.on_gone(cell)

    async def _deactivate_leader(self, cell: Cell) -> None:
        await self._background.end(cell)
        await self._leaders.lose(cell)
        await self._deactivate(cell)

    async def _deactivate(self, cell: Cell) -> None:
        hook = cell.hosted_type.spec.on_deactivate
        await self._background.end(cell)
        try:
            async with asyncio.timeout(_HOOK_LIMIT):
                if hook is not None and cell.phase == PASSIVATING:
                    await self._hooks.run(cell, hook, self._hooks.context())
        except Exception as exc:  # noqa: BLE001 - user code: a failing hook does not keep the entity in memory
            text = f"{cell.address}: on_deactivate failed; the entity is passivated nevertheless"
            log_failure(_log, text, exc, handler_failed(exc))
        if cell.phase == PASSIVATING:  # else the shard was lost during the hook, and the cell is gone already
            self._finish_passivation(cell)

    def _finish_passivation(self, cell: Cell) -> None:
        self.passivated += 1
        cell.instance = None
        cell.phase = DEAD
        self._events.on_gone(cell)


class _Undecodable(PersistenceError):
    """The stored state cannot be decoded, so trying again does not help."""


class _Unwanted(Exception):
    """Nobody here needs the instance any longer: the singleton is on its way to another runner, or no message waits."""


_FINAL: Final = (_Undecodable, CallCycle, ConfigurationError)
"""What trying again would not change."""
