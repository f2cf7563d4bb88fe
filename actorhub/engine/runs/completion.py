"""How runs end: commit what changed, then reply; or roll back, then reply with the error.

A reply, and what the handler told, leaves only after the commit that it belongs to (invariant E). A failed *commit* is
not a failed *run*. Where the store refused it because of owner, version or connection, the store may know better than
this process what is committed: the activation is rebuilt, and a durable message runs again, at whoever owns the
shard then. That attempt counts, but leaves no line in the message's history.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from actorhub.core.codec import check_size, copy_of
from actorhub.core.errors import (
    ActorhubError,
    DuplicateKey,
    EntityError,
    HandlerFailed,
    MalformedMessage,
    PersistenceError,
)
from actorhub.core.logger import get_logger
from actorhub.core.texts import is_of, only_error_in
from actorhub.engine.model.asked import Asked
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import COMMITTING, DEAD, DONE, EXCLUSIVE, RUNNING, Cell, Message
from actorhub.engine.model.run import NestedChanges, Run
from actorhub.engine.runs.commits import Commits, next_to_count, tells_durably
from actorhub.engine.runs.failures import handler_failed, log_failure, takes_outcome
from actorhub.engine.runs.nesting import end_nesting
from actorhub.engine.runs.rolling_back import roll_back
from actorhub.engine.runs.scheduler import Scheduler, lost_owner
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import NotPending, RolledBack, RunCommit

_log: Final = get_logger("actorhub.results")

RUN_ONLY: Final = (NotPending, DuplicateKey, RolledBack)
"""Errors of a commit after which the activation can go on: only this run does not count."""


class CompletionStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process."""

    commits: int
    refused_commits: int
    """Commits that the store refused because ownership or version no longer held."""
    failed: int
    """Runs that ended with an exception other than an `EntityError`."""


class Rebuilder(Protocol):
    """Ends activations whose state is not what is stored; the next message of the entity makes a new one."""

    def distrust(self, cell: Cell, error: ActorhubError) -> None:
        """Rebuild a cell about which the store disagrees, and have the ownership of its shard checked."""
        ...

    def discard(self, cell: Cell) -> None:
        """Rebuild a cell whose state cannot be set back."""
        ...


class _Ending(msgspec.Struct):
    """What is done once a run is committed."""

    data: bytes | None
    """The state that the commit writes; `None`: none."""
    body: bytes
    """The reply."""
    next_one: DurableMessage | None
    """The message whose run the commit counts as well."""
    commit: RunCommit | None = None
    """The commit, if it may be repeated once for a refused key."""


class Completion:
    """Takes what handlers returned or raised. Each run gets here once, and ends with one `Scheduler.end_turn`."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        commits: Commits,
        max_message_bytes: int,
        rebuilder: Rebuilder,
    ) -> None:
        """Prepare.

        Args:
            scheduler: Takes turns back.
            commits: Asks the store.
            max_message_bytes: Limit of results and states.
            rebuilder: Ends activations whose state cannot be trusted.
        """
        self._scheduler = scheduler
        self._store = commits
        self._limit = max_message_bytes
        self._rebuilder = rebuilder
        self._commits = 0
        self._refused = 0
        self._failed = 0

    def statistics(self) -> CompletionStatistics:
        """Return the counts."""
        return CompletionStatistics(self._commits, self._refused, self._failed)

    def on_returned(self, run: Run, value: Any) -> None:
        """Commit what the run changed, if anything; then reply with `value`."""
        message, cell = run.message, run.cell
        if message.abandoned_for is not None or cell.phase == DEAD:
            # The handler went on nevertheless, but nobody waits for its result, or its activation is over.
            self.on_raised(run, asyncio.CancelledError())
            return
        try:
            body, copy = message.spec.result.encode_fitting(value)
            if len(body) > self._limit:
                check_size(body, self._limit, f"{message.what}: result")
        except BaseException as exc:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            self.on_raised(run, exc)
            return
        if (
            cell.record is None
            and run.outbox is None
            and run.transaction is None
            and run.progress is None
            and not isinstance(message, DurableMessage)
        ):
            # What `_finish` does, for what most calls are: it saves them a call.
            message.phase = DONE
            run.is_over = True
            try:
                message.on_returned(body, copy)
                if self._scheduler.observer is not None:
                    self._scheduler.observer.ended(message, None)
            finally:
                self._scheduler.end_turn(message)
                if run.nesting is not None:
                    end_nesting(run)
        else:
            self._settle(run, body)

    def on_raised(self, run: Run, error: BaseException) -> None:
        """Roll the state back to what is committed, then reply with the error."""
        message, cell = run.message, run.cell
        if run.parts and cell.phase != DEAD:
            self._when_quiet(run, partial(self.on_raised, run, error))
            return
        if run.asked is not None and cell.phase != DEAD and self._asks_again(run, run.asked, error):
            return
        self.take_back(run)
        message.phase = DONE
        run.is_over = True
        reply = self._as_reply(message, error)
        try:
            message.on_failed(reply)
            self._observe_end(run, reply)
        finally:
            if run.transaction is not None:
                # The turn lasts until the locks of its SQL are free: the next run may want the same rows.
                self._store.roll_back(run, self._scheduler.end_turn)
            else:
                self._scheduler.end_turn(message)
            end_nesting(run)

    def give_up(self, run: Run) -> None:
        """Answer for a run that does not end. An activation that it had for itself goes with it."""
        message, cell = run.message, run.cell
        error = message.abandoned_for
        assert error is not None
        error.possibly_executed = True
        if run.transaction is not None:
            self._store.roll_back(run, lambda _: None)
        if run.step_transactions:
            self._store.roll_back_steps(run)
        if message.is_nested or cell.load == EXCLUSIVE:
            self._answer_failed(run, error)
            self._rebuilder.discard(cell)
        else:
            self._finish_failed(run, error)

    def take_back(self, run: Run) -> None:
        """Undo what a run, or the present step of a stream, changed and told."""
        message, cell = run.message, run.cell
        if cell.record is not None and cell.phase != DEAD:
            take_over_turn(message, cell)
            if not message.is_nested:
                self.undo(cell)
            elif run.nesting is not None and not run.nesting.undo():
                _log.warning("%s: changes of a failed run are mixed with others, so it is loaded again", cell.address)
                self._rebuilder.discard(cell)
        run.outbox = None

    def undo_late_changes(self, cell: Cell) -> None:
        """Undo what has changed the state since its last run ended, before the next one takes it for its own.

        A task or a thread that a run has left behind may hold the state, or find the entity again. It is nobody's
        change: its run is over, perhaps rolled back, and no other has made it. Where it cannot be undone the activation
        ends, so that the run that is about to begin commits nothing.
        """
        codec, record = cell.hosted_type.spec.state, cell.record
        assert codec is not None
        assert record is not None
        try:
            is_changed = codec.encode(cell.instance.state) != record.data
        except MalformedMessage:
            is_changed = True
        if is_changed:
            text = "%s: something that outlived its run changed the state, perhaps a task or a thread: that is undone"
            _log.error(text, cell.address)
            self.undo(cell)

    def undo(self, cell: Cell) -> None:
        """Set the state back to what is committed. Where user code does not let it, the activation is rebuilt."""
        try:
            roll_back(cell, shared=cell.load != EXCLUSIVE)
        except Exception:  # noqa: BLE001 - user code: `__post_init__` of a type in the state may raise anything
            _log.exception("%s: its state cannot be set back, so it is loaded again", cell.address)
            self._rebuilder.discard(cell)

    def changed_state(self, cell: Cell) -> bytes | None:
        """Return the instance's state, encoded, if it differs from what is committed.

        Raises:
            MalformedMessage: it cannot be encoded, or would not come back as it is.
            MessageTooLarge: it exceeds the message limit.
        """
        codec, record = cell.hosted_type.spec.state, cell.record
        assert codec is not None
        assert record is not None
        data = codec.encode(cell.instance.state)
        if data == record.data:
            return None
        codec.check_faithful(cell.instance.state, data)
        if record.carried is not None:
            record.carried.prepare(cell.instance.state, data)
        return check_size(data, self._limit, f"{cell.address}: state")

    def count_commit(self, cell: Cell, data: bytes | None) -> None:
        """Note a commit that succeeded; `data` is the state that it wrote, if any."""
        self._commits += 1
        if data is not None:
            assert cell.record is not None
            cell.record.version += 1
            cell.record.data = data
            if cell.record.carried is not None:
                cell.record.carried = cell.record.carried.committed()

    def on_refused(self, cell: Cell, error: BaseException) -> ActorhubError:
        """Count a commit that failed, and have its cell rebuilt: the store may know better what is committed."""
        self._refused += 1
        if not isinstance(error, ActorhubError):
            error = PersistenceError(f"{cell.address}: commit failed: {error!r}")
        error.possibly_executed = True
        self._rebuilder.distrust(cell, error)
        return error

    def note_state_commit(self, cell: Cell, data: bytes, outcome: "asyncio.Future[None]") -> ActorhubError | None:
        """Note how a commit of a state alone ended; return the error if it failed."""
        error = outcome.exception() if not outcome.cancelled() else asyncio.CancelledError()
        if error is None:
            self.count_commit(cell, data)
            return None
        return self.on_refused(cell, error)

    def _as_reply(self, message: Message, error: BaseException) -> ActorhubError:
        if message.abandoned_for is not None:
            message.abandoned_for.possibly_executed = True
            return message.abandoned_for
        only = only_error_in(error)
        if is_of(only, EntityError):
            return copy_of(only, self._limit)
        if is_of(only, asyncio.CancelledError) and message.cell is not None and message.cell.phase == DEAD:
            reason = "its runner lost the shard, or a run within it or before it could not be undone"
            return lost_owner(message, f"its activation ended while the handler ran: {reason}")
        self._failed += 1
        if is_of(only, ActorhubError) and takes_outcome(only, ran=True):
            return only
        return self.failure_of(message, error)

    def failure_of(self, message: Message, error: BaseException) -> HandlerFailed:
        """Log an exception of user code, and return the reply for it."""
        reply = handler_failed(error)
        log_failure(_log, f"{message.what}({message.entity_id}) failed", error, reply)
        return reply

    def _asks_again(self, run: Run, asked: Asked, error: BaseException) -> bool:
        """Have the next run ask again what this one failed by, before its failure is recorded; return whether it does.

        With the old key it would get the old error, whenever it is run again. What else the run asked for keeps its
        key, errors that the run has handled included: the next run must find the same.
        """
        retry = run.spec.retry
        blamed = asked.blamed_for(error)
        if not blamed or (isinstance(run.message, DurableMessage) and retry.is_final(error)):
            return False
        asked.forget_failed()
        self._end_after(run, self._store.free_keys(blamed), partial(self.on_raised, run, error))
        return True

    def _when_quiet(self, run: Run, go_on: Callable[[], None]) -> None:
        """End a run later, once the saves of its tasks are answered, and the runs within it are over."""

        def on_quiet() -> None:
            run.quiet = None
            go_on()

        run.quiet = asyncio.get_running_loop().create_future()
        self._end_after(run, run.quiet, on_quiet)

    def _end_after(self, run: Run, event: "asyncio.Future[None]", go_on: Callable[[], None]) -> None:
        """End a run once `event` is done. Until then it keeps its turn, and nobody can call it back."""

        def on_done(_: object) -> None:
            self._scheduler.release(run)
            if run.cell.phase == DEAD:
                run.quiet = None
                self.on_raised(run, asyncio.CancelledError())
            else:
                go_on()

        run.message.phase = COMMITTING
        event.add_done_callback(on_done, context=self._scheduler.context)

    def _settle(self, run: Run, body: bytes) -> None:
        message, cell = run.message, run.cell
        if run.parts and cell.phase != DEAD:
            self._when_quiet(run, partial(self._settle, run, body))
            return
        if run.nesting is not None and self._settle_nested(run, body, run.nesting):
            return
        try:
            data = None if message.is_nested or cell.record is None else self.changed_state(cell)
        except BaseException as exc:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            self.on_raised(run, exc)
            return
        if data is not None and message.spec.readonly:
            changed = TypeError(f"{message.what} is readonly and changed the state: remove readonly=True")
            self.on_raised(run, changed)
        elif (
            isinstance(message, DurableMessage)
            or run.transaction is not None
            or run.progress is not None
            or tells_durably(run)
        ):
            self._commit_run(run, data, body)
        elif data is None:
            self._finish(run, body)
        else:
            # From here on a cancellation changes nothing (`Scheduler.abandon`): the answer decides, and the turn lasts
            # until it.
            message.phase = COMMITTING
            self._store.state(cell, message.epoch, data).add_done_callback(
                partial(self._on_state_answer, run, data, body), context=self._scheduler.context
            )

    def _settle_nested(self, run: Run, body: bytes, nesting: NestedChanges) -> bool:
        """Make what a nested run leaves part of the run around it; return `False` if it has to commit by itself."""
        message = run.message
        take_over_turn(message, run.cell)
        if not message.is_nested:
            return False
        if nesting.outer is None and not nesting.has_changes:
            return False
        try:
            if nesting.outer is None:
                raise TypeError(f"{message.what} changed the state within a readonly handler: remove readonly=True")
            nesting.join(run)
        except TypeError as error:
            self.on_raised(run, error)
        else:
            self._finish(run, body)
        return True

    def _on_state_answer(self, run: Run, data: bytes, body: bytes, outcome: "asyncio.Future[None]") -> None:
        error = self.note_state_commit(run.cell, data, outcome)
        if error is None:
            self._finish(run, body)
        else:
            self._finish_failed(run, error)

    def _commit_run(self, run: Run, data: bytes | None, body: bytes) -> None:
        """Write the state `data` (if any), the reply, and what was told durably; then reply."""
        message, cell = run.message, run.cell
        message.phase = COMMITTING
        # Its turn lasts until the store has answered, so the head of the queue now is what runs next. To count that run
        # with this commit saves it a round trip of its own.
        ending = _Ending(data, body, next_to_count(message, cell))
        try:
            if run.progress is not None:
                run.progress.check_quiet(message.what)
            commit = self._store.commit_of(run, data, body=body, next_one=ending.next_one)
        except (ActorhubError, RuntimeError) as error:
            message.phase = RUNNING
            self.on_raised(run, error)
            return
        if run.transaction is None and commit.checkpoints is None:
            ending.commit = commit
            outcome = self._store.run(cell, commit)
        else:
            outcome = self._store.run_alone(run, commit, run.transaction)
        outcome.add_done_callback(partial(self._on_run_answer, run, ending), context=self._scheduler.context)

    def _on_run_answer(self, run: Run, ending: _Ending, outcome: "asyncio.Future[bool]") -> None:
        message, cell = run.message, run.cell
        run.transaction = None
        error = store_error(outcome)
        if error is None:
            self.count_commit(cell, ending.data)
            # If the next message left its entity meanwhile, this marks a record that is out of memory; whoever loads
            # the message again gets the store's count.
            if ending.next_one is not None and outcome.result():
                ending.next_one.attempts += 1
                ending.next_one.is_counted = True
            self._finish(run, ending.body)
        elif isinstance(error, DuplicateKey) and ending.commit is not None:
            again, ending.commit = self._store.again(run, ending.commit, error), None
            again.add_done_callback(partial(self._on_run_answer, run, ending), context=self._scheduler.context)
        elif isinstance(error, RUN_ONLY) and cell.phase != DEAD:
            # Refused for a reason of the run's own, and nothing is written: the activation knows what is committed.
            message.phase = RUNNING
            self.on_raised(run, error)
        else:
            self._finish_failed(run, self.on_refused(cell, error))

    def _finish(self, run: Run, body: bytes) -> None:
        """Reply, and send what the handler told; everything of the run is committed."""
        message = run.message
        message.phase = DONE
        run.is_over = True
        try:
            message.on_completed(body)
            if run.outbox:
                self._scheduler.send_told(run)
            if self._scheduler.observer is not None:
                self._scheduler.observer.ended(message, None)
        finally:
            # The turn ends last: what the next run tells must not overtake what this one told (invariant G).
            self._scheduler.end_turn(message)
            if run.nesting is not None:
                end_nesting(run)

    def _finish_failed(self, run: Run, error: ActorhubError) -> None:
        """End a run with an error; none of it counts."""
        self._answer_failed(run, error)
        self._scheduler.end_turn(run.message)

    def _answer_failed(self, run: Run, error: ActorhubError) -> None:
        message = run.message
        message.phase = DONE
        run.is_over = True
        run.outbox = None
        message.on_failed(error)
        self._observe_end(run, error)
        end_nesting(run)

    def _observe_end(self, run: Run, error: ActorhubError) -> None:
        if self._scheduler.observer is not None:
            self._scheduler.observer.ended(run.message, error)


def take_over_turn(message: Message, cell: Cell) -> None:
    """Give a nested run the turn if the run around it is over: from then on what it changes is its own."""
    if message.is_nested and cell.load == 0:
        cell.nested -= 1
        cell.load = EXCLUSIVE
        message.is_nested = False
