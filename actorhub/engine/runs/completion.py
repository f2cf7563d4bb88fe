"""How runs end: commit what changed, then reply; or roll back, then reply with the error.

A reply leaves only after the commit that it belongs to (invariant E). A failed *commit* is not a failed *run*: where
the store refused one because of owner, version or connection, it may know better than this process what is committed,
so the activation is built anew, and a durable message runs again at whoever owns the shard then.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from actorhub.core.codec import check_size
from actorhub.core.errors import ActorhubError, DuplicateKey, EntityError, HandlerFailed, PersistenceError
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import COMMITTING, DEAD, DONE, EXCLUSIVE, RUNNING, Cell, Message
from actorhub.engine.runs.commits import Commits, next_to_count, tells_durably
from actorhub.engine.runs.scheduler import Scheduler, lost_owner
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import NotPending, RolledBack

_log: Final = logging.getLogger("actorhub.results")

RUN_ONLY: Final = (NotPending, DuplicateKey, RolledBack)
"""Errors of a commit with which nothing is wrong with the entity: only this run does not count."""


class CompletionStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process."""

    commits: int
    refused_commits: int
    """Commits that the store refused because ownership or version no longer held."""
    failed: int
    """Runs that ended with an exception that is not an `EntityError`."""


class _Ending(msgspec.Struct):
    """What is done once a run is committed."""

    data: bytes | None
    """The state that is committed then."""
    body: bytes
    """The reply."""
    next_one: DurableMessage | None
    """The message whose run is counted along with it."""


class Completion:
    """Takes what handlers returned or raised. Each run ends in exactly one `Scheduler.ended`."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        commits: Commits,
        max_message_bytes: int,
        distrust: Callable[[Cell, ActorhubError], None],
    ) -> None:
        """Prepare.

        Args:
            scheduler: Takes turns back.
            commits: Asks the store.
            max_message_bytes: Limit of results and states.
            distrust: Told of a cell with which the store disagrees: it must be built anew, or its shard was lost.
        """
        self._scheduler = scheduler
        self._store = commits
        self._limit = max_message_bytes
        self._distrust = distrust
        self._commits = 0
        self._refused = 0
        self._failed = 0

    def statistics(self) -> CompletionStatistics:
        """Return the counts."""
        return CompletionStatistics(self._commits, self._refused, self._failed)

    def returned(self, message: Message, value: Any) -> None:
        """Reply with `value`, after committing the state if the run changed it."""
        cell = message.cell
        assert cell is not None
        if message.abandoned_for is not None or cell.phase == DEAD:
            self.raised(message, asyncio.CancelledError())
            return
        try:
            body = message.spec.result.encode(value)
            if len(body) > self._limit:
                check_size(body, self._limit, f"{message.what}: result")
        except Exception as exc:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            self.raised(message, exc)
            return
        if (
            cell.record is None
            and message.outbox is None
            and message.transaction is None
            and message.progress is None
            and not isinstance(message, DurableMessage)
        ):
            self._done(message, body)
        else:
            self._settle(message, cell, body)

    def raised(self, message: Message, error: BaseException) -> None:
        """Take the state back to what is committed and reply with the error."""
        cell = message.cell
        assert cell is not None
        if cell.record is not None and cell.phase != DEAD:
            _own_turn(message, cell)
            if not message.is_nested:
                roll_back(cell, shared=cell.load != EXCLUSIVE)
        message.phase = DONE
        message.drop_outbox()
        reply = self._as_reply(message, error)
        message.failed(reply)
        self._observe_end(message, reply)
        if message.transaction is not None:
            # The turn lasts until its locks are free: the next run may want the same rows.
            self._store.roll_back(message, self._scheduler.ended)
        else:
            self._scheduler.ended(message)

    def changed_state(self, cell: Cell) -> bytes | None:
        """Return the instance's state, encoded, if it is not what is committed.

        Raises:
            MalformedMessage: it cannot be encoded, or could not be loaded again.
            MessageTooLarge: it exceeds the message limit.
        """
        codec, record = cell.hosted_type.spec.state, cell.record
        assert codec is not None
        assert record is not None
        data = codec.encode(cell.instance.state)
        if data == record.data:
            return None
        codec.decode(data)
        return check_size(data, self._limit, f"{cell.address}: state")

    def count_commit(self, cell: Cell, data: bytes | None) -> None:
        """Note a commit; `data` is the state that it wrote, if any."""
        self._commits += 1
        if data is not None:
            assert cell.record is not None
            cell.record.version += 1
            cell.record.data = data

    def refused(self, cell: Cell, error: BaseException) -> ActorhubError:
        """Count a commit that did not succeed, and build its cell anew: the store may know better what is committed."""
        self._refused += 1
        if not isinstance(error, ActorhubError):
            error = PersistenceError(f"{cell.address}: commit failed: {error!r}")
        error.possibly_executed = True
        self._distrust(cell, error)
        return error

    def state_committed(self, cell: Cell, data: bytes, outcome: "asyncio.Future[None]") -> ActorhubError | None:
        """Note the outcome of a commit of a state alone; return the error if it did not succeed."""
        error = outcome.exception() if not outcome.cancelled() else asyncio.CancelledError()
        if error is None:
            self.count_commit(cell, data)
            return None
        return self.refused(cell, error)

    def _as_reply(self, message: Message, error: BaseException) -> ActorhubError:
        if message.abandoned_for is not None:
            message.abandoned_for.possibly_executed = True
            return message.abandoned_for
        if isinstance(error, EntityError):
            return error
        if isinstance(error, asyncio.CancelledError) and message.cell is not None and message.cell.phase == DEAD:
            return lost_owner(message, "its runner lost the shard while the handler ran")
        self._failed += 1
        if isinstance(error, ActorhubError):
            error.possibly_executed = True
            return error
        _log.error("%s(%s) failed", message.what, message.entity_id, exc_info=error)
        return handler_failed(error)

    def _settle(self, message: Message, cell: Cell, body: bytes) -> None:
        if message.is_nested:
            _own_turn(message, cell)
        try:
            # A nested run (`reentrant`) commits nothing by itself: what it changed becomes part of the commit of the
            # run around it, or is undone with that. Two commits would show a half-done state.
            data = None if message.is_nested or cell.record is None else self.changed_state(cell)
        except Exception as exc:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            self.raised(message, exc)
            return
        if data is not None and message.spec.readonly:
            self.raised(message, TypeError(f"{message.what} is readonly and changed the state: remove readonly=True"))
        elif (
            isinstance(message, DurableMessage)
            or message.transaction is not None
            or message.progress is not None
            or tells_durably(message)
        ):
            self._commit_run(message, cell, data, body)
        elif data is None:
            self._done(message, body)
        else:
            message.phase = COMMITTING
            self._store.state(cell, message.epoch, data).add_done_callback(
                partial(self._state_settled, message, cell, _Ending(data, body, None)), context=self._scheduler.context
            )

    def _state_settled(self, message: Message, cell: Cell, ending: _Ending, outcome: "asyncio.Future[None]") -> None:
        assert ending.data is not None
        error = self.state_committed(cell, ending.data, outcome)
        if error is None:
            self._done(message, ending.body)
        else:
            self._not_done(message, error)

    def _commit_run(self, message: Message, cell: Cell, data: bytes | None, body: bytes) -> None:
        """Write the state `data` (if any), the reply, and what was told durably; then reply."""
        message.phase = COMMITTING
        ending = _Ending(data, body, next_to_count(message, cell))
        try:
            if message.progress is not None:
                message.progress.check_quiet(message.what)
            run = self._store.commit_of(message, cell, data, body=body, next_one=ending.next_one)
        except (ActorhubError, RuntimeError) as error:
            message.phase = RUNNING
            self.raised(message, error)
            return
        if message.transaction is None and run.checkpoints is None:
            outcome = self._store.run(cell, run)
        else:
            outcome = self._store.run_alone(cell, run, message.transaction)
        outcome.add_done_callback(partial(self._run_settled, message, cell, ending), context=self._scheduler.context)

    def _run_settled(self, message: Message, cell: Cell, ending: _Ending, outcome: "asyncio.Future[bool]") -> None:
        message.transaction = None
        error = store_error(outcome)
        if error is None:
            self.count_commit(cell, ending.data)
            if ending.next_one is not None and outcome.result():
                ending.next_one.attempts += 1
                ending.next_one.is_counted = True
            self._done(message, ending.body)
        elif isinstance(error, RUN_ONLY) and cell.phase != DEAD:
            message.phase = RUNNING
            self.raised(message, error)
        else:
            self._not_done(message, self.refused(cell, error))

    def _done(self, message: Message, body: bytes) -> None:
        """Reply, and send what the handler told: everything of the run is committed."""
        message.phase = DONE
        message.completed(body)
        if message.outbox:
            self._scheduler.send_told(message)
        if self._scheduler.observer is not None:
            self._scheduler.observer.ended(message, None)
        self._scheduler.ended(message)

    def _not_done(self, message: Message, error: ActorhubError) -> None:
        """End a run whose commit was refused."""
        message.phase = DONE
        message.drop_outbox()
        message.failed(error)
        self._observe_end(message, error)
        self._scheduler.ended(message)

    def _observe_end(self, message: Message, error: ActorhubError) -> None:
        if self._scheduler.observer is not None:
            self._scheduler.observer.ended(message, error)


def _own_turn(message: Message, cell: Cell) -> None:
    """Give a nested run the turn if the run that it was inside is over: what it changed is its own then."""
    if message.is_nested and cell.load == 0:
        cell.nested -= 1
        cell.load = EXCLUSIVE
        message.is_nested = False


def roll_back(cell: Cell, *, shared: bool) -> None:
    """Make the instance's state what is committed; beside other readers only if it differs."""
    record, codec = cell.record, cell.hosted_type.spec.state
    assert record is not None
    assert codec is not None
    if shared:
        try:
            if codec.encode(cell.instance.state) == record.data:
                return
        except Exception:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            _log.warning("%s: a readonly handler left a state that cannot be encoded; taken back", cell.address)
    cell.instance.state = codec.decode(record.data)
    record.data = codec.encode(cell.instance.state)


def handler_failed(error: BaseException) -> HandlerFailed:
    """Return the reply for an exception of user code, with its traceback."""
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return HandlerFailed(name, str(error), "".join(traceback.format_exception(error)))
