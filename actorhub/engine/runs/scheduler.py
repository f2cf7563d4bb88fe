"""Whose turn it is: which message of which cell runs next.

A run that was given its entity's turn is *ready*; the carriers (`runs.carriers`) take it from there.
"""

import contextvars
from collections import deque
from collections.abc import Callable

from actorhub.core.envelope import TELL
from actorhub.core.errors import ActorhubError, MailboxFull, RunnerUnavailable
from actorhub.engine.model.records import (
    ACTIVE,
    CLOSING,
    COMMITTING,
    DEAD,
    DONE,
    EXCLUSIVE,
    QUEUED,
    RUNNING,
    Cell,
    HostedShard,
    Message,
    running,
)
from actorhub.engine.runs.interleaving import grant
from actorhub.engine.runs.observing import Observer


class RunMoved(RunnerUnavailable):
    """The run was cut short because its entity moves; its next run goes on from its checkpoints."""


class Scheduler:
    """Gives turns to messages, one exclusive run per cell at a time, in the order in which they were accepted.

    All state is in `ready`, `suspended` and the cells; every method is synchronous.
    """

    def __init__(
        self,
        *,
        carry: Callable[[], None],
        idle: Callable[[Cell], None],
        route: Callable[[Message], None],
    ) -> None:
        """Prepare.

        Args:
            carry: Starts a carrier; called when something is ready and no carrier is about to look.
            idle: Told when a run of a closing cell ended: perhaps it was the last.
            route: Sends a message that a handler told, once the handler's run is committed.
        """
        self._carry = carry
        self.idle = idle
        self._route = route
        self.ready: deque[Message] = deque()
        """Runs that have their turn, and wait for a carrier."""
        self.is_carried = False
        """A carrier is scheduled, or between two runs: it will see what becomes ready."""
        self.suspended: set[Message] = set()
        """Runs whose handler waits for something, each with a carrier of its own."""
        self.observer: Observer | None = None
        """Told of runs, where metrics or traces are wanted."""
        self.context = contextvars.copy_context()
        """The context that every run starts from a copy of. No caller's context ever leaks into an entity."""
        self.context.run(running.set, None)

    def enqueue(self, cell: Cell, message: Message) -> None:
        """Start `message` on `cell`, queue it, or fail it with `MailboxFull`."""
        message.cell = cell
        if cell.phase == ACTIVE and cell.queue is None and cell.admit(message.spec):
            self.start(message)
        elif message.spec.reentrant and cell.instance is not None and (cell.load or cell.phase == ACTIVE):
            cell.nested += 1
            message.is_nested = True
            self.start(message)
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
        elif not (has_room := len(queue) < cell.hosted_type.spec.mailbox_capacity) and not message.waits_for_room:
            message.cell = None
            error = MailboxFull(f"{message.address}: {len(queue)} messages wait in its mailbox")
            self.fail_unstarted(message, error)
            return False
        message.phase = QUEUED
        queue.append(message)
        return has_room

    def pump(self, cell: Cell) -> None:
        """Start everything in the cell's queue that may start now."""
        while (message := cell.next_runnable()) is not None:
            if message.kind == TELL:
                message.accepted()
            self.start(message)

    def start(self, message: Message) -> None:
        """Have a message that has its turn run; also one that had to wait for the store first."""
        message.phase = RUNNING
        self.ready.append(message)
        if not self.is_carried:
            self.is_carried = True
            self._carry()

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
            if told.delivery is not None and message.cell is not None:
                told.delivery.is_stored = True
                told.told_by(message.cell.shard.told)
            self._route(told)

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
        for message in self.suspended:
            cell = message.cell
            if cell is not None and cell.phase == DEAD and message.abandoned_for is None:
                self.abandon(message, lost_owner(message, reason))

    def let_go(self, shard: HostedShard) -> None:
        """Cut short what would hold up a hand-over for long: each `run`, and runs that wait for what outlives them."""
        for message in (*self.suspended, *self.ready):
            cell, progress = message.cell, message.progress
            if cell is None or cell.shard is not shard or progress is None:
                continue
            if progress.waits or not message.spec.durable:
                self.abandon(message, run_moved(message))

    def dequeue(self, message: Message) -> None:
        """Take a message out of its mailbox, if it is still there."""
        cell = message.cell
        if cell is not None and cell.queue is not None and message in cell.queue:
            cell.queue.remove(message)
            if not cell.queue:
                cell.queue = None

    def refuse(self, message: Message, error: ActorhubError) -> None:
        """Fail a message that has its turn and did not run, and give the turn back."""
        self.fail_unstarted(message, error)
        self.ended(message)

    def fail_unstarted(self, message: Message, error: ActorhubError) -> None:
        """Fail a message of which nothing ran."""
        message.phase = DONE
        message.failed(error)
        if self.observer is not None:
            self.observer.refused(message, error)


def lost_owner(message: Message, reason: str) -> RunnerUnavailable:
    """Return the error of a run that was stopped because its runner lost the shard."""
    return RunnerUnavailable(f"{message.address}: {reason}", possibly_executed=True)


def run_moved(message: Message) -> RunMoved:
    """Return the error of a run that is cut short so that its entity can move."""
    return RunMoved(f"{message.address}: moves to another runner", possibly_executed=True)
