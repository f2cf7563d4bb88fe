"""Whose turn it is: which message of which cell runs next.

A *turn* is the right to run on a cell: one exclusive turn, or several shared ones (`readonly`, `concurrency`). A
message that got one is *ready*, and a carrier (`runs.carriers`) takes it from there.
"""

import contextvars
from collections import deque
from collections.abc import Callable

from actorhub.core.envelope import TELL
from actorhub.core.errors import ActorhubError, CallCycle, MailboxFull, RunnerUnavailable
from actorhub.engine.model.records import (
    ACTIVATING,
    ACTIVE,
    CLOSING,
    COMMITTING,
    DEAD,
    DONE,
    EXCLUSIVE,
    QUEUED,
    RUNNING,
    Cell,
    Message,
    RunKind,
)
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.draining import Draining
from actorhub.engine.runs.interleaving import grant
from actorhub.engine.runs.newcomers import Newcomers
from actorhub.engine.runs.observing import Observer
from actorhub.engine.runs.reading import Reading


class RunMoved(RunnerUnavailable):
    """The run was cut short because its entity moves. The next run goes on from its checkpoints."""


class Scheduler:
    """Gives turns to messages in the order in which they were accepted.

    All state is in `ready`, `suspended` and the cells. Every method is synchronous, so nothing comes between a check
    and the change that follows from it; but what a method calls may come back into the scheduler.
    """

    def __init__(
        self,
        *,
        draining: Draining,
        carry: Callable[[], None],
        expect_end: Callable[[Message], None],
        freeze: Callable[[Message], None],
        passivate_if_idle: Callable[[Cell], None],
        route: Callable[[Message], None],
        newcomers: Newcomers,
        on_idle: Callable[[Cell], None],
    ) -> None:
        """Prepare.

        Args:
            draining: Says what starts although its entity closes.
            carry: Starts a carrier; called when something is ready that no carrier would find.
            expect_end: Told of a message whose handler was cancelled: it is given up if it goes on.
            freeze: Ends the run of a message at once: its handler takes no further step.
            passivate_if_idle: Ends a closing cell in which nothing is left; called when a run of it ended.
            route: Sends a message that a handler told, once the handler's run is committed.
            newcomers: Messages that wait for a place in memory.
            on_idle: Told of a cell that became idle, while something waits for a place.
        """
        self.draining = draining
        self._carry = carry
        self._expect_end = expect_end
        self._freeze = freeze
        self.passivate_if_idle = passivate_if_idle
        self._route = route
        self._newcomers = newcomers
        self._waiting_entities = newcomers.entities
        self._on_idle = on_idle
        self.ready: deque[Message] = deque()
        """Messages that have their turn and wait for a carrier."""
        self.is_carried = False
        """A carrier is scheduled, or between two runs: it will find what becomes ready."""
        self.suspended: set[Run] = set()
        """Runs whose handler awaits something, each with a carrier of its own."""
        self.holders: dict[Cell, Run] = {}
        """The suspended run that has the cell for itself: what calls back runs within it."""
        self.reading = Reading()
        self.observer: Observer | None = None
        """Told of runs; `None` unless metrics or traces are wanted."""
        self.context = contextvars.copy_context()
        """Every run starts from a copy of this context, so that no caller's context leaks into an entity."""
        self.context.run(running.set, None)

    def enqueue(self, cell: Cell, message: Message) -> None:
        """Start `message` on `cell`, queue it, or fail it with `MailboxFull`."""
        message.cell = cell
        # A free turn is not enough: what is queued already comes first (invariant G). There may be both, a turn that
        # `spec` could share and a queue whose head waits for an exclusive one.
        if cell.phase == ACTIVE and cell.queue is None and cell.admit(message.spec):
            self.start(message)
        elif message.spec.reentrant and cell.load != 0 and cell.address in message.chain:
            # It must not wait: the run that has the turn is the one that waits for this call.
            cell.nested += 1
            message.is_nested = True
            self.start(message)
        elif message.spec.readonly and (view := self.reading.admit(cell, self.holders.get(cell), message)) is not None:
            message.cell = view
            self.start(message)
        elif not self._queue(cell, message):
            return
        if message.kind == TELL:
            message.on_accepted()

    def restart_if_alone(self, message: Message) -> bool:
        """Have a message, which was to run within another run's turn, wait for one of its own if that run has ended."""
        cell = message.cell
        assert cell is not None
        if cell.load > 0 or cell in self.holders:
            return False
        cell.nested -= 1
        message.is_nested = False
        if cell.phase == ACTIVE and cell.queue is None and cell.admit(message.spec):
            self.start(message)
        else:
            self._queue(cell, message)
        return True

    def hold(self, run: Run) -> None:
        """Note that a run which has its entity for itself is suspended, so that its entity can be called back."""
        if not run.message.is_nested and run.cell.load == EXCLUSIVE:
            self.holders[run.cell] = run

    def start_reads(self, cell: Cell) -> None:
        """Start the readonly messages in the mailbox of an entity whose run begins a durable wait."""
        for message in [queued for queued in cell.queue or () if queued.spec.readonly]:
            view = self.reading.admit(cell, self.holders.get(cell), message)
            if view is not None:
                self.dequeue(message)
                message.cell = view
                if message.kind == TELL:
                    message.on_accepted()
                self.start(message)

    def release(self, run: Run) -> None:
        """Note that a run is being ended: no other run starts within it."""
        if self.holders.get(run.cell) is run:
            del self.holders[run.cell]

    def _queue(self, cell: Cell, message: Message) -> bool:
        """Queue the message, or fail it; return whether a tell is accepted now, and not only when its turn comes."""
        if cell.phase == ACTIVATING and cell.address in message.chain:
            # A reentrant handler, called back by what the activation waits for. It cannot run before that is over.
            self.fail_unstarted(message, _cycle_in_activation(message))
            return False
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
        if cell.phase == CLOSING:
            self.pump(cell)
        return has_room

    def pump(self, cell: Cell) -> None:
        """Start as much of the cell's queue as there are turns for.

        One that closes starts its queue up to the last message that a running handler waits for: order is kept.
        """
        while cell.phase == ACTIVE or (cell.phase == CLOSING and self.draining.is_awaited(cell)):
            message = cell.next_runnable()
            if message is None:
                return
            if message.kind == TELL:
                # If it waited beyond the mailbox's capacity its sender has waited, too: that is what slows senders
                # down.
                message.on_accepted()
            self.start(message)

    def start(self, message: Message) -> None:
        """Hand a message that has its turn to a carrier; a durable one comes here again once its run is counted."""
        message.phase = RUNNING
        # No handler runs in here. Whoever ends a turn, and so starts the next message, may go on changing its own
        # state.
        self.ready.append(message)
        if not self.is_carried:
            # Set before the carrier takes its first step: what becomes ready until then needs no second one.
            self.is_carried = True
            self._carry()

    def end_turn(self, message: Message) -> None:
        """Take the turn of a message back, and start what waited for it."""
        cell = message.cell
        assert cell is not None
        if message.is_nested:
            cell.nested -= 1
        else:
            cell.load = 0 if cell.load == EXCLUSIVE else cell.load - 1
        if cell.queue is not None or cell.returning is not None or cell.phase == CLOSING or self._waiting_entities:
            self._pass_on(cell, message)

    def lend(self, message: Message) -> None:
        """Let others have the turn of a run that waits for something. From now on that run counts as nested."""
        cell = message.cell
        assert cell is not None
        message.is_nested = True
        cell.nested += 1
        cell.load = 0
        self._pass_on(cell, message)

    def give_back(self, cell: Cell, message: Message) -> None:
        """Let others have a turn that `message` got back after its run was over."""
        cell.load = 0
        self._pass_on(cell, message)

    def _pass_on(self, cell: Cell, message: Message) -> None:
        # An interleaved run that wants its turn back comes first, except after a turn of an interleaved run (see
        # `grant`).
        if cell.returning is not None:
            grant(cell, message)
        if cell.queue is not None:
            self.pump(cell)
        if cell.phase == CLOSING:
            if (entity := self.reading.entity_of(cell)) is not None:
                self.reading.on_read(cell)
                cell = entity
            self.passivate_if_idle(cell)
        elif self._waiting_entities and cell.is_idle:
            self._on_idle(cell)

    def send_told(self, run: Run) -> None:
        """Send what the handler has told so far; the work that it belongs to is committed."""
        outbox, run.outbox = run.outbox, None
        for told in outbox or ():
            if told.delivery is not None:
                # The commit stored it, so its owner need not, and it survives if this copy gets lost on the way.
                told.delivery.is_stored = True
                told.track_in(run.cell.shard.told)
            self._route(told)

    def abandon(self, message: Message, error: ActorhubError) -> None:
        """End a message whose caller no longer waits: dequeue it, or cancel its run. The error becomes its reply.

        A run that is being committed goes on, since a commit cannot be called back; its reply finds nobody.
        """
        if message.phase == QUEUED and message.task is None:  # with a task it is a stream that waits for its next turn
            self.dequeue(message)
            message.phase = DONE
            message.on_failed(error)
        elif message.phase in (RUNNING, QUEUED):
            if message.abandoned_for is None:
                # Without a task it is ready, or about to suspend: the carrier finds this mark then.
                message.abandoned_for = error
                if message.task is not None:
                    message.task.cancel()
                    self._expect_end(message)
        elif message.phase != COMMITTING:
            message.phase = DONE

    def terminate(self, message: Message, error: ActorhubError) -> None:
        """End a run without telling its handler, unless it is being committed. The error becomes its reply."""
        if message.phase == RUNNING:
            message.abandoned_for = error
            if message.task is not None:
                self._freeze(message)

    def cancel_dead(self, reason: str) -> None:
        """Cancel every suspended run whose cell is dead; its caller learns that the outcome is unknown."""
        # A cancelled task takes its next step later, so the set does not change during the loop.
        for run in self.suspended:
            if run.cell.phase == DEAD and run.message.abandoned_for is None:
                self.abandon(run.message, lost_owner(run.message, reason))

    def cut_short(self, is_leaving: Callable[[Cell], bool]) -> None:
        """Cut short what would hold up a hand-over for long: a singleton's `run`, and runs in a durable wait."""
        # Both go on at the next owner from what they stored. A durable handler between two waits is let finish.

        def leaves(message: Message) -> bool:
            return message.cell is not None and is_leaving(message.cell)

        suspended = [run for run in self.suspended if leaves(run.message)]
        waiting = {run.message for run in suspended if run.progress is not None and run.progress.waits}
        begun = (*(run.message for run in suspended), *self.ready)
        main_loops = {each for each in begun if each.run_kind is RunKind.MAIN_LOOP and leaves(each)}
        for message in waiting | main_loops:
            self.abandon(message, run_moved(message))

    def dequeue(self, message: Message) -> None:
        """Take a message out of its mailbox, or out of those that wait for a place, if it is still there."""
        cell = message.cell
        if cell is None:
            self._newcomers.remove(message)
        elif cell.queue is not None and message in cell.queue:
            cell.queue.remove(message)
            if not cell.queue:
                cell.queue = None

    def refuse(self, message: Message, error: ActorhubError) -> None:
        """Fail a message that has its turn and did not run, and take the turn back."""
        self.fail_unstarted(message, error)
        self.end_turn(message)

    def fail_unstarted(self, message: Message, error: ActorhubError) -> None:
        """Fail a message whose handler did not start."""
        message.phase = DONE
        message.on_failed(error)
        if self.observer is not None:
            self.observer.refused(message, error)


def _cycle_in_activation(message: Message) -> CallCycle:
    path = (*message.chain, message.address)
    text = f"call cycle: {' -> '.join(path)}: {message.address} is being activated and has no instance yet: use tell"
    return CallCycle(path, text)


def lost_owner(message: Message, reason: str) -> RunnerUnavailable:
    """Return the error of a run whose activation is over, for example because its runner lost the shard."""
    return RunnerUnavailable(f"{message.address}: {reason}", possibly_executed=True)


def run_moved(message: Message) -> RunMoved:
    """Return the error of a run that is cut short so that its entity can move."""
    return RunMoved(f"{message.address}: it moves to another runner, and its run was cut short", possibly_executed=True)
