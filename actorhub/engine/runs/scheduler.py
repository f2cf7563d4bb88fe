"""Turns: which message of which cell runs next, and the tasks that carry the runs.

A *carrier* is a task that takes started messages off one ready list and runs each handler's coroutine itself, every
step in a context of the run's own. A handler that never suspends costs no task. When one suspends, its carrier waits
with it (so `asyncio.current_task`, timeouts and cancellation work as usual) and another carrier goes on with the rest.
"""

import asyncio
import contextvars
import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, Protocol, cast

from actorhub.core.clock import Clock
from actorhub.core.envelope import TELL
from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    MailboxFull,
    MalformedMessage,
    RunnerUnavailable,
)
from actorhub.engine.model.cell import ACTIVE, CLOSING, DEAD, EXCLUSIVE, Cell, HostedShard
from actorhub.engine.model.message import COMMITTING, DONE, NEW, QUEUED, RUNNING, Message, running
from actorhub.engine.runs.interleaving import Interleaving, grant
from actorhub.engine.runs.observing import Observer

_log: Final = logging.getLogger("actorhub.turns")

_RUNS_PER_STEP: Final = 128
"""Runs that one carrier takes before it lets the event loop breathe."""


class RunMoved(RunnerUnavailable):
    """The run was cut short because its entity moves; its next run goes on from its checkpoints."""


class Lease(Protocol):
    """Whether this process may still act as an owner."""

    fresh_until: float
    """Monotonic seconds after which nothing may start or commit."""


class Outcomes(Protocol):
    """What becomes of a run; each call ends in exactly one `Turns.ended` for the message."""

    def returned(self, message: Message, value: Any) -> None:
        """Commit what changed and reply with `value`."""
        ...

    def raised(self, message: Message, error: BaseException) -> None:
        """Roll back and reply with the error."""
        ...

    def stream(self, message: Message) -> None:
        """Take over a message whose handler is a stream."""
        ...

    def may_run(self, message: Message) -> bool:
        """Whether a durable message may run now; if not, `Turns.resume` or `Turns.ended` is called for it later."""
        ...


class Turns:
    """Runs messages on cells, one exclusive run per cell at a time, in the order in which they were accepted.

    All state is in `_ready` and in the cells; every method is synchronous.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, lease: Lease) -> None:
        self._loop = loop
        self._monotonic = clock.monotonic
        self._lease = lease
        self._ready: deque[Message] = deque()
        self._carrying = False
        """A carrier is scheduled, or between two runs."""
        self._carriers: set[asyncio.Task[None]] = set()
        self._suspended: set[Message] = set()
        self._base = contextvars.copy_context()
        self._base.run(running.set, None)
        self.outcomes: Outcomes
        self.idle: Callable[[Cell], None]
        """Told when a run of a closing cell ended: perhaps it was the last."""
        self.not_owned: Callable[[Message], None]
        """Takes back a message that was accepted but may not start here any more; nothing ran."""
        self.send: Callable[[Message], None]
        """Routes a message that a handler told, once the handler's run is committed."""
        self.observer: Observer | None = None
        """Told of runs, where metrics or traces are wanted."""
        self.started = 0

    @property
    def context(self) -> contextvars.Context:
        """The context that every run starts from a copy of."""
        return self._base

    def enqueue(self, cell: Cell, message: Message) -> None:
        """Start `message` on `cell`, queue it, or fail it with `MailboxFull`."""
        message.cell = cell
        if cell.phase == ACTIVE and cell.queue is None and cell.admit(message.spec):
            self._start(message)
        elif message.spec.reentrant and cell.instance is not None and (cell.load or cell.phase == ACTIVE):
            cell.nested += 1
            message.is_nested = True
            self._start(message)
        elif not self._queue(cell, message):
            return
        if message.kind == TELL:
            message.accepted()

    def _queue(self, cell: Cell, message: Message) -> bool:
        """Return whether the message is in the mailbox; a tell beyond its capacity is accepted when its turn comes."""
        queue = cell.queue
        has_room = True
        if queue is None:
            queue = cell.queue = deque()
        elif not (has_room := len(queue) < cell.hosted.spec.mailbox_capacity) and not message.waits_for_room:
            message.cell = None
            self._fail_unstarted(message, MailboxFull(f"{message.address}: {len(queue)} messages wait in its mailbox"))
            return False
        message.phase = QUEUED
        queue.append(message)
        return has_room

    def pump(self, cell: Cell) -> None:
        """Start everything in the cell's queue that may start now."""
        while (message := cell.next_runnable()) is not None:
            if message.kind == TELL:
                message.accepted()
            self._start(message)

    def resume(self, message: Message) -> None:
        """Go on with a message that has its turn and waited for the store."""
        self._start(message)

    def ended(self, message: Message) -> None:
        """Give the turn of a finished run back and start what waited for it."""
        cell = message.cell
        assert cell is not None
        if message.is_nested:
            cell.nested -= 1
        else:
            load = cell.load
            cell.load = 0 if load == EXCLUSIVE else load - 1
        self._pass_on(cell, message)

    def lend(self, message: Message) -> None:
        """Let others have the turn of a run that waits for something; from now on it is counted as nested."""
        cell = message.cell
        assert cell is not None
        message.is_nested = True
        cell.nested += 1
        cell.load = 0
        self._pass_on(cell, message)

    def give_back(self, cell: Cell, message: Message) -> None:
        """Let others have a turn that came too late for the run of `message`."""
        cell.load = 0
        self._pass_on(cell, message)

    def _pass_on(self, cell: Cell, message: Message) -> None:
        if cell.returning is not None:
            grant(cell, message)
        if cell.queue is not None:
            self.pump(cell)
        if cell.phase == CLOSING:
            self.idle(cell)

    def send_told(self, message: Message) -> None:
        """Send what the handler told so far: the work that it belongs to is committed."""
        outbox, message.outbox = message.outbox, None
        for told in outbox or ():
            if told.durable is not None and message.cell is not None:
                told.durable.is_stored = True
                told.told_by(message.cell.shard.told)
            self.send(told)

    def abandon(self, message: Message, error: ActorhubError) -> None:
        """End a message whose caller no longer waits: dequeue it, or cancel its run. The error is its reply.

        A run that is being committed goes on; only its reply is dropped.
        """
        if message.phase == QUEUED and message.task is None:
            self.dequeue(message)
            message.phase = DONE
            message.failed(error)
        elif message.phase in (RUNNING, QUEUED):
            if message.abandoned_for is None:
                message.abandoned_for = error
                if message.task is not None:
                    message.task.cancel()
        elif message.phase != COMMITTING:
            message.phase = DONE

    def cancel_dead(self, reason: str) -> None:
        """Cancel every suspended run whose cell is dead; their callers learn that the outcome is unknown."""
        for message in self._suspended:
            cell = message.cell
            if cell is not None and cell.phase == DEAD and message.abandoned_for is None:
                self.abandon(message, lost_owner(message, reason))

    def let_go(self, shard: HostedShard) -> None:
        """Cut short what would hold up a hand-over for long: each `run`, and runs that wait for what outlives them."""
        for message in (*self._suspended, *self._ready):
            cell, progress = message.cell, message.progress
            if cell is None or cell.shard is not shard or progress is None:
                continue
            if progress.waits or not message.spec.durable:
                self.abandon(message, RunMoved(f"{message.address}: moves to another runner", possibly_executed=True))

    def dequeue(self, message: Message) -> None:
        """Take a message out of its mailbox, if it is still there."""
        cell = message.cell
        if cell is not None and cell.queue is not None and message in cell.queue:
            cell.queue.remove(message)
            if not cell.queue:
                cell.queue = None

    async def aclose(self) -> None:
        """Cancel every run and wait until they ended; a handler that swallows cancellation is left behind after 1 s."""
        for task in self._carriers:
            task.cancel()
        if self._carriers:
            await asyncio.wait(self._carriers, timeout=1)

    def _start(self, message: Message) -> None:
        message.phase = RUNNING
        self._ready.append(message)
        if not self._carrying:
            self._carrying = True
            self._spawn_carrier()

    def _spawn_carrier(self) -> None:
        task = asyncio.Task(self._carry(), loop=self._loop, name="actorhub-carrier")
        self._carriers.add(task)
        task.add_done_callback(self._carrier_done)

    def _carrier_done(self, task: "asyncio.Task[None]") -> None:
        self._carriers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("a carrier died: this is a defect of actorhub", exc_info=error)
            self._carrying = bool(self._ready)
            if self._ready:
                self._spawn_carrier()

    async def _carry(self) -> None:
        await self._runs()

    @types.coroutine
    def _runs(self) -> Generator[Any, Any, None]:
        ready = self._ready
        runs = 0
        while ready:
            message = ready.popleft()
            coroutine = self._admitted(message)
            if coroutine is None:
                continue
            context = self._base.copy()
            context.run(running.set, message)
            if self.observer is not None:
                self.observer.started(message, context)
            try:
                step = context.run(coroutine.send, None)
            except StopIteration as stop:
                self.outcomes.returned(message, stop.value)
            except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
                self.outcomes.raised(message, exc)
            else:
                yield from self._wait_with(message, context, coroutine, step)
                # Others took over what was ready; a request to cancel that is left on this task ends with it.
                return
            runs += 1
            if runs == _RUNS_PER_STEP:
                runs = 0
                yield
        self._carrying = False

    def _admitted(self, message: Message) -> "Coroutine[Any, Any, Any] | None":
        """Return the handler's coroutine, or settle a message that may not run (any more) and return `None`."""
        cell = message.cell
        assert cell is not None
        now = self._monotonic()
        spec = message.spec
        if message.abandoned_for is not None or message.deadline <= now:
            error = message.abandoned_for or CallTimeout(f"{message.what}: its deadline passed while it waited")
            error.possibly_executed = False
            self._refuse(message, error)
            return None
        if cell.phase == DEAD or now >= self._lease.fresh_until:
            message.phase = NEW
            self.ended(message)
            self.not_owned(message)
            return None
        cell.last_used = now
        if spec.durable and not spec.stream and not self.outcomes.may_run(message):
            return None
        message.epoch = cell.shard.epoch
        self.started += 1
        if spec.stream:
            self.outcomes.stream(message)
            return None
        return self._coroutine(message, cell)

    def _coroutine(self, message: Message, cell: Cell) -> "Coroutine[Any, Any, Any] | None":
        spec = message.spec
        try:
            args = message.args if message.args is not None else spec.decode_arguments(message.body)
            if spec.interleaved:
                cast("Any", message).interleaving = Interleaving(self, message)  # its class has the slot
            return spec.function(cell.instance, *args)  # type: ignore[no-any-return]
        except MalformedMessage as error:
            self._refuse(message, error)
            return None
        except Exception as exc:  # noqa: BLE001 - user code: a type's __post_init__ may raise anything
            self._refuse(message, MalformedMessage(f"{message.what}: arguments: {type(exc).__name__}: {exc}"))
            return None

    def _refuse(self, message: Message, error: ActorhubError) -> None:
        self._fail_unstarted(message, error)
        self.ended(message)

    def _fail_unstarted(self, message: Message, error: ActorhubError) -> None:
        message.phase = DONE
        message.failed(error)
        if self.observer is not None:
            self.observer.refused(message, error)

    def _wait_with(
        self, message: Message, context: contextvars.Context, coroutine: "Coroutine[Any, Any, Any]", step: Any
    ) -> Generator[Any, Any, None]:
        """See a suspended run to its end; other carriers take over what is ready meanwhile."""
        task = message.task = asyncio.current_task()
        assert task is not None
        self._suspended.add(message)
        if message.abandoned_for is not None:
            task.cancel()
        self._carrying = bool(self._ready)
        if self._carrying:
            self._spawn_carrier()
        timer = None
        if message.spec.timeout is not None:
            timer = self._loop.call_later(message.spec.timeout, partial(self._out_of_time, message))
        if message.interleaving is not None:
            steps = message.interleaving.drive(context, coroutine, step)
        else:
            steps = _drive(context, coroutine, step)
        try:
            value = yield from steps
        except GeneratorExit:
            raise
        except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
            self._resumed(message)
            self.outcomes.raised(message, exc)
        else:
            self._resumed(message)
            self.outcomes.returned(message, value)
        finally:
            if timer is not None:
                timer.cancel()

    def _resumed(self, message: Message) -> None:
        self._suspended.discard(message)
        message.task = None

    def _out_of_time(self, message: Message) -> None:
        text = f"{message.what}: the handler ran longer than its timeout of {message.spec.timeout} s"
        self.abandon(message, CallTimeout(text, possibly_executed=True))


def _drive(context: contextvars.Context, coroutine: "Coroutine[Any, Any, Any]", step: Any) -> Generator[Any, Any, Any]:
    """Run the rest of `coroutine`, whose first step yielded `step`, every step inside `context`."""
    while True:
        try:
            value = yield step
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as exc:  # noqa: BLE001 - user code: thrown on into its coroutine
            resume = partial(coroutine.throw, exc)
        else:
            resume = partial(coroutine.send, value)
        try:
            step = context.run(resume)
        except StopIteration as stop:
            return stop.value


@types.coroutine
def run_in(context: contextvars.Context, coroutine: "Coroutine[Any, Any, Any]") -> Generator[Any, Any, Any]:
    """Await `coroutine` in the current task, every step inside `context`."""
    try:
        step = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    return (yield from _drive(context, coroutine, step))


def lost_owner(message: Message, reason: str) -> RunnerUnavailable:
    """Return the error of a run that was stopped because its runner lost the shard."""
    return RunnerUnavailable(f"{message.address}: {reason}", possibly_executed=True)
