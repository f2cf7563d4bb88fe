"""The tasks that carry the runs.

A *carrier* is a task that takes ready messages off one list and runs each handler's coroutine itself, every step in a
context of the run's own. A handler that never suspends costs no task. When one suspends, its carrier waits with it (so
that `asyncio.current_task`, timeouts and cancellation work as usual), and another carrier goes on with the rest. A task
and a queue per entity would cost several times the memory of an idle cell, and time on every message.
"""

import asyncio
import contextvars
import sys
import types
import weakref
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, Protocol

from actorhub.core.clock import Clock
from actorhub.core.errors import CallTimeout, MalformedMessage, MessageCancelled
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.records import DEAD, EXCLUSIVE, NEW, Message
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.driving import after_close, drive, resumed
from actorhub.engine.runs.interleaving import Interleaving
from actorhub.engine.runs.nesting import Nesting
from actorhub.engine.runs.scheduler import RunMoved, Scheduler
from actorhub.engine.runs.streams import Streams
from actorhub.engine.runs.stuck import STUCK_AFTER, keep_forever, log_stuck

_log: Final = get_logger("actorhub.turns")

_RUNS_PER_STEP: Final = 128
"""Runs that one carrier takes before it lets the event loop do something else."""

_ALONE: Final = (EXCLUSIVE, 1)
"""The load of a cell on which nothing else runs."""


class StartGate(Protocol):
    """Counts the runs of durable messages before they start."""

    def begin(self, message: DurableMessage) -> bool:
        """Return whether the message, which has its turn, may run now.

        If not, `Scheduler.start` or `Scheduler.end_turn` has been called for it, or will be.
        """
        ...


class Carriers:
    """Runs what is ready, and hands each run that is over to `Completion`."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        lease: Lease,
        scheduler: Scheduler,
        completion: Completion,
        streams: Streams,
        gate: StartGate,
        take_back: Callable[[Message], None],
    ) -> None:
        """Prepare.

        Args:
            loop: Runs the carriers.
            clock: Its monotonic time is what deadlines are given in.
            lease: Nothing starts once it has run out.
            scheduler: Says what is ready.
            completion: Takes what handlers return and raise.
            streams: Takes over messages whose handler is a stream.
            gate: Decides about durable messages.
            take_back: Takes a message that was accepted but must not start here; nothing ran.
        """
        self._loop = loop
        self._monotonic = clock.monotonic
        self._lease = lease
        self._scheduler = scheduler
        self._completion = completion
        self._streams = streams
        self._gate = gate
        self._take_back = take_back
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspended: dict[Message, tuple[Run, Coroutine[Any, Any, Any]]] = {}
        self._timers: dict[Run, asyncio.TimerHandle] = {}
        """When the handler of a suspended run is cancelled, as it has a timeout, or given up, as it was cancelled."""
        self._is_closed = False
        self.started = 0
        """Runs so far."""

    def spawn(self) -> None:
        """Start a carrier for what is ready."""
        task = asyncio.Task(self._carry(), loop=self._loop, name="actorhub-carrier")
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def run_of(self, message: Message) -> Run | None:
        """Return the run of a message whose handler awaits something; `None`: it does not."""
        suspended = self._suspended.get(message)
        return None if suspended is None else suspended[0]

    async def aclose(self) -> None:
        """Cancel every run and wait until all have ended, for at most 1 s: a handler may swallow its cancellation."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        is_closed = task not in self._tasks  # by `_end_closed`
        self._tasks.discard(task)
        if task.cancelled():
            # Perhaps before its first step, by somebody who found it among all tasks: `is_carried` must not go on
            # saying that somebody sees to what is ready.
            if not self._is_closed and self._scheduler.ready:
                self._go_on_elsewhere()
        elif (error := task.exception()) is not None and not is_closed:
            text = "a carrier died: this is a defect of actorhub, unless the program closes the coroutines of its tasks"
            _log.critical(text, exc_info=error)
            self._go_on_elsewhere()

    def _go_on_elsewhere(self) -> None:
        """Have another carrier take over what is ready."""
        scheduler = self._scheduler
        scheduler.is_carried = bool(scheduler.ready)
        if scheduler.is_carried:
            self.spawn()

    async def _carry(self) -> None:
        await self._runs()

    @types.coroutine
    def _runs(self) -> Generator[Any, Any, None]:
        scheduler, completion = self._scheduler, self._completion
        ready, base = scheduler.ready, scheduler.context
        task: Any = asyncio.current_task()
        count_references, count_weak_references = sys.getrefcount, weakref.getweakrefcount
        references, weak_references = count_references(task), count_weak_references(task)
        runs = 0
        while ready:
            message = ready.popleft()
            coroutine = self._admit(message)
            if coroutine is None:
                continue
            assert message.cell is not None
            run = Run(message, message.cell)
            if message.spec.interleaved or message.is_nested:
                self._relate(run)
            context = base.copy()
            context.run(running.set, run)
            if scheduler.observer is not None:
                scheduler.observer.started(message, context)
            try:
                step = context.run(coroutine.send, None)
            except StopIteration as stop:
                completion.on_returned(run, stop.value)
            except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
                completion.on_raised(run, exc)
            else:
                yield from self._wait_with(run, context, coroutine, step)
                # Another carrier took over what was ready. This task ends, and with it a cancellation that came too
                # late for its run: it would hit the next one.
                return
            # A handler may have cancelled the task that it ran in, or keep it and cancel it later. No other run may be
            # in it then. `cancelling()` does not tell: before Python 3.13 `uncancel` does not call a cancellation back.
            if (
                task._must_cancel  # noqa: SLF001 - there is no public way to see it
                or count_references(task) != references
                or count_weak_references(task) != weak_references
            ):
                self._go_on_elsewhere()
                return
            runs += 1
            if runs == _RUNS_PER_STEP:
                runs = 0
                yield from self._pause()
        # Since the list was found empty nothing was awaited, so nothing can have become ready without being seen.
        scheduler.is_carried = False

    def _relate(self, run: Run) -> None:
        """Prepare a run that shares its entity with others between its steps."""
        message, cell = run.message, run.cell
        if message.spec.interleaved:
            run.interleaving = Interleaving(self._scheduler, message, cell)
            run.progress = message.progress
        else:
            run.nesting = Nesting(message, cell, self._scheduler.holders.get(cell))

    def _pause(self) -> Generator[Any, Any, None]:
        # One round of the event loop, for I/O and timers. What becomes ready meanwhile is still this carrier's.
        try:
            yield
        except asyncio.CancelledError:
            # Somebody found it among all tasks of the event loop.
            if not self._is_closed:
                self._go_on_elsewhere()
            raise

    def _admit(self, message: Message) -> "Coroutine[Any, Any, Any] | None":
        """Return the handler's coroutine; `None` if the message must not run here and now, and was dealt with."""
        cell = message.cell
        assert cell is not None
        # Between its turn and this moment anything may have passed: the caller's patience, the activation, the lease.
        # These are the last checks before user code runs, and there is no await between them and its first step, so
        # whatever fails here can promise that nothing ran (invariant F).
        now = self._monotonic()
        # A stream that goes on for one more step has begun; it ends by itself.
        if (message.abandoned_for is not None or message.deadline <= now) and message.producer is None:
            error = message.abandoned_for or CallTimeout(f"{message.what}: its deadline passed while it waited")
            error.possibly_executed = False
            self._scheduler.refuse(message, error)
            return None
        if cell.phase == DEAD or now >= self._lease.fresh_until:
            # The lease is compared with the clock because no timer is due yet in a process that was frozen and thaws
            # right here (invariant I). Who owns the shard by now runs the message.
            message.phase = NEW
            self._scheduler.end_turn(message)
            self._take_back(message)
            return None
        cell.last_used = now
        if (message.is_nested and self._scheduler.restart_if_alone(message)) or (
            isinstance(message, DurableMessage) and not self._gate.begin(message)
        ):
            return None
        if cell.record is not None and cell.nested == 0 and cell.load in _ALONE:
            self._completion.undo_late_changes(cell)
        message.epoch = cell.shard.epoch  # Its commit and its reply count for the ownership under which it starts.
        self.started += 1
        spec = message.spec
        if spec.stream:
            self._streams.take_turn(message)
            return None
        try:
            args = message.args
            if args is None:
                try:
                    args = spec.arguments.raw_decode(message.body)  # what `decode_arguments` tries first: saves a call
                except BaseException:  # noqa: BLE001 - user code: a type's `__post_init__` may raise anything
                    args = spec.decode_arguments(message.body)
            return spec.function(cell.instance, *args)  # type: ignore[no-any-return]
        except MalformedMessage as error:
            refusal = error
        except BaseException as exc:  # noqa: BLE001 - user code: what wraps a handler may raise anything
            refusal = MalformedMessage(f"{message.what}: {summary_of(exc)}")
        self._scheduler.refuse(message, refusal)
        return None

    def _wait_with(
        self, run: Run, context: contextvars.Context, coroutine: "Coroutine[Any, Any, Any]", step: Any
    ) -> Generator[Any, Any, None]:
        """Stay with a suspended run until it ends; another carrier takes over what is ready."""
        message = run.message
        task = message.task = asyncio.current_task()
        assert task is not None
        self._scheduler.suspended.add(run)
        self._suspended[message] = run, coroutine
        if message.abandoned_for is not None:
            # It was abandoned during its first step, when there was no task to cancel.
            task.cancel()
            self.expect_end(message)
        elif message.spec.timeout is not None:
            self._timers[run] = self._loop.call_later(message.spec.timeout, self._on_timeout, run)
        # From here on this carrier sees to nothing else.
        self._go_on_elsewhere()
        if run.interleaving is not None:
            steps = run.interleaving.drive(context, coroutine, step, partial(_resumed, run))
        elif run.nesting is not None:
            run.nesting.on_step_ended()
            steps = drive(context, coroutine, step, run.nesting.resume)
        else:
            self._scheduler.hold(run)
            # Nobody terminates the run of a volatile message, so it is spared the question before each step.
            is_durable = isinstance(message, DurableMessage)
            steps = drive(context, coroutine, step, partial(_resumed, run) if is_durable else resumed)
        try:
            value = yield from steps
        except GeneratorExit:
            after_close(self._loop, partial(self._end_closed, run, task))
            raise
        except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
            self._on_raised(run, task, exc)
        else:
            if self._forget_suspended(run):
                self._completion.on_returned(run, value)

    def _on_raised(self, run: Run, task: "asyncio.Task[Any]", error: BaseException) -> None:
        if asyncio.current_task() is not task:  # Somebody has called `throw` of the coroutine.
            self._loop.call_soon(self._end_closed, run, task)
        if self._forget_suspended(run):
            self._completion.on_raised(run, error)

    def _end_closed(self, run: Run, task: "asyncio.Task[Any]") -> None:
        """Answer for a run if its carrier cannot, because somebody has ended its coroutine, and end the carrier."""
        self._tasks.discard(task)
        if self._forget_suspended(run):
            self._completion.on_raised(run, RuntimeError("somebody closed the coroutine of the handler's task"))
        task.cancel()

    def _forget_suspended(self, run: Run) -> bool:
        """Return whether the run is still to be completed: it has not been given up."""
        # Before the run is completed: `abandon` must not cancel the carrier of a run that is over.
        if (timer := self._timers.pop(run, None)) is not None:
            timer.cancel()
        if run.is_over:
            return False
        self._suspended.pop(run.message, None)
        self._scheduler.suspended.discard(run)
        if not run.parts:
            self._scheduler.release(run)
        run.message.task = None
        return True

    def expect_end(self, message: Message) -> None:
        """Give a handler up that was cancelled and goes on; one that waits for the next owner is the drain's to end."""
        error = message.abandoned_for
        assert error is not None
        if message.producer is not None:
            message.producer.expect_end(error)
        elif (suspended := self._suspended.get(message)) is not None and not isinstance(error, RunMoved):
            run, _ = suspended
            if (timer := self._timers.pop(run, None)) is not None:
                timer.cancel()
            grace = message.spec.cancel_grace if isinstance(error, MessageCancelled) else STUCK_AFTER
            self._timers[run] = self._loop.call_later(grace, self._give_up, *suspended, grace)

    def freeze(self, message: Message) -> None:
        """End a suspended run without a further step of its handler: neither `except` nor `finally` blocks run."""
        run, coroutine = self._suspended[message]
        run.is_frozen = True
        keep_forever(coroutine)
        self._forget_suspended(run)
        self._completion.give_up(run)

    def _on_timeout(self, run: Run) -> None:
        message = run.message
        text = f"{message.what}: the handler ran longer than its timeout of {message.spec.timeout} s"
        self._scheduler.abandon(message, CallTimeout(text, possibly_executed=True))

    def _give_up(self, run: Run, coroutine: "Coroutine[Any, Any, Any]", grace: float) -> None:
        """End a run whose handler goes on although it was cancelled; whatever it still does does not count."""
        message = run.message
        log_stuck(_log, message.what, message.entity_id, coroutine, after=grace)
        self._forget_suspended(run)
        self._completion.give_up(run)


class _FrozenError(BaseException):
    """Ends the carrier of a run that was terminated; its coroutine stays where it is."""


def _resumed(run: Run, context: contextvars.Context, resume: Callable[[], Any]) -> Any:
    """Take the next step of a run that may have been terminated while it waited."""
    if run.is_frozen:
        raise _FrozenError
    return resumed(context, resume)
