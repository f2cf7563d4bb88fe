"""What becomes of a finished run: commit what changed, then reply; or roll back, then reply with the error."""

import asyncio
import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from actorhub.core.codec import check_size
from actorhub.core.errors import (
    ActorhubError,
    EntityError,
    HandlerFailed,
    PersistenceError,
)
from actorhub.engine.model.cell import DEAD, EXCLUSIVE, Cell
from actorhub.engine.model.message import COMMITTING, DONE, Message, running
from actorhub.engine.runs.checkpoints import StepRun, is_body
from actorhub.engine.runs.scheduler import Turns, lost_owner
from actorhub.storage.ports import Fenced, StateCommit, Storage

if TYPE_CHECKING:
    from actorhub.engine.durable.intake import Delivery
    from actorhub.engine.model.durable_message import DurableMessage
    from actorhub.engine.runs.commits import RunCommits
    from actorhub.engine.runs.streams import Streams

_log: Final = logging.getLogger("actorhub.results")


class ResultStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process."""

    commits: int
    refused_commits: int
    """Commits that the store refused because ownership or version no longer held."""
    failed: int
    """Runs that ended with an exception that is not an `EntityError`."""


class Results:
    """Settles runs. A reply leaves only after the commit that it belongs to (invariant E)."""

    def __init__(self, turns: Turns, storage: Storage, incarnation: str, max_message_bytes: int) -> None:
        self._turns = turns
        self._storage = storage
        self._incarnation = incarnation
        self._limit = max_message_bytes
        self._commits = 0
        self._refused = 0
        self._failed = 0
        self.distrust: Callable[[Cell, ActorhubError], None]
        """Told of a cell whose store disagrees with it: it must be built anew, or its shard was lost."""
        self.streams: Streams
        self.runs: RunCommits
        self.delivery: Delivery

    def statistics(self) -> ResultStatistics:
        """Return the counts."""
        return ResultStatistics(self._commits, self._refused, self._failed)

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
            and not message.spec.durable
        ):
            self.done(message, body)
        else:
            self._settle(message, cell, body)

    def may_run(self, message: Message) -> bool:
        """Whether a durable message, whose turn it is, is counted and may run now; else it is seen to."""
        return self.delivery.starts.may_run(cast("DurableMessage", message))

    def stream(self, message: Message) -> None:
        """Begin or go on with a stream that got its turn."""
        self.streams.take_turn(message)

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
            self.runs.roll_back(message)
        else:
            self._turns.ended(message)

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
            data = None if message.is_nested or cell.record is None else self.changed_state(cell)
        except Exception as exc:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            self.raised(message, exc)
            return
        if data is not None and message.spec.readonly:
            self.raised(message, TypeError(f"{message.what} is readonly and changed the state: remove readonly=True"))
        elif (
            message.spec.durable
            or message.transaction is not None
            or message.progress is not None
            or tells_durably(message)
        ):
            self.runs.commit(message, cell, data, body)
        elif data is None:
            self.done(message, body)
        else:
            message.phase = COMMITTING
            self.commit(cell, message.epoch, data).add_done_callback(
                partial(self._committed, message, data, body), context=self._turns.context
            )

    def changed_state(self, cell: Cell) -> bytes | None:
        """Return the instance's state, encoded, if it is not what is committed.

        Raises:
            MalformedMessage: it cannot be encoded, or could not be loaded again.
            MessageTooLarge: it exceeds the message limit.
        """
        codec, record = cell.hosted.spec.state, cell.record
        assert codec is not None
        assert record is not None
        data = codec.encode(cell.instance.state)
        if data == record.data:
            return None
        codec.decode(data)
        return check_size(data, self._limit, f"{cell.address}: state")

    def commit(self, cell: Cell, epoch: int, data: bytes) -> "asyncio.Future[None]":
        """Hand the cell's next state to the group commit; `committed` must be told of the outcome."""
        assert cell.record is not None
        if not cell.may_commit:
            refused = asyncio.get_running_loop().create_future()
            refused.set_exception(Fenced(f"{cell.address}: its runner cannot prove that it still owns the shard"))
            return refused
        commit = StateCommit(cell.shard.id, epoch, cell.hosted.spec.name, cell.entity_id, cell.record.version + 1, data)
        return self._storage.commit_state(commit, self._incarnation)

    def committed(self, cell: Cell, data: bytes, outcome: "asyncio.Future[None]") -> ActorhubError | None:
        """Take note of a commit's outcome; return the error if it did not succeed."""
        error = outcome.exception() if not outcome.cancelled() else asyncio.CancelledError()
        if error is None:
            self.note_commit(cell, data)
            return None
        return self.refused(cell, error)

    def note_commit(self, cell: Cell, data: bytes | None) -> None:
        """Count a commit; `data` is the state that it wrote, if any."""
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
        self.distrust(cell, error)
        return error

    def _committed(self, message: Message, data: bytes, body: bytes, outcome: "asyncio.Future[None]") -> None:
        cell = message.cell
        assert cell is not None
        error = self.committed(cell, data, outcome)
        if error is None:
            self.done(message, body)
        else:
            self.not_done(message, error)

    def not_done(self, message: Message, error: ActorhubError) -> None:
        """End a run whose commit was refused."""
        message.phase = DONE
        message.drop_outbox()
        message.failed(error)
        self._observe_end(message, error)
        self._turns.ended(message)

    def done(self, message: Message, body: bytes) -> None:
        """Reply, and send what the handler told: everything of the run is committed."""
        message.phase = DONE
        message.completed(body)
        if message.outbox:
            self._turns.send_told(message)
        if self._turns.observer is not None:
            self._turns.observer.ended(message, None)
        self._turns.ended(message)

    def _observe_end(self, message: Message, error: ActorhubError) -> None:
        if self._turns.observer is not None:
            self._turns.observer.ended(message, error)


async def save_now(state: Any = msgspec.UNSET) -> None:
    """Commit the state of the entity whose handler runs in this context, as it is now.

    Args:
        state: Replaces it first.

    Raises:
        RuntimeError: outside of a handler, or in one that may not commit.
        PersistenceError: ownership was lost, or the store failed.
    """
    message = running.get()
    cell = message.cell if message is not None else None
    if message is None or cell is None or cell.instance is None or (cell.record is None and not is_body(message)):
        raise RuntimeError("save() works in the handlers of an Entity with state, and in the run() of a singleton")
    if isinstance(message, StepRun):
        raise RuntimeError(f"{message.what}: a step cannot save: return what is to be saved")  # noqa: TRY004 - where it is
    if message.interleaving is None:
        await _save(message, cell, state)
        return
    async with message.interleaving.held():
        if is_body(message):
            await cell.shard.host.singletons.save(message, cell, state)
        else:
            await _save(message, cell, state)


async def _save(message: Message, cell: Cell, state: Any) -> None:
    if message.spec.readonly or (message.is_nested and cell.phase != DEAD):
        raise RuntimeError(f"{message.what}: a readonly handler, or one inside another's turn, cannot save")
    if state is not msgspec.UNSET:
        cell.instance.state = state
    if (data := cell.shard.host.results.changed_state(cell)) is not None:
        await commit_now(cell, message.epoch, data)


async def commit_now(cell: Cell, epoch: int, data: bytes) -> None:
    """Commit `data` as the cell's state; a cancellation is raised once the outcome is known.

    Raises:
        PersistenceError: ownership was lost, or the store failed.
    """
    results = cell.shard.host.results
    future = results.commit(cell, epoch, data)
    cancelled = await settled(future)
    if (error := results.committed(cell, data, future)) is not None:
        raise error
    if cancelled:
        raise asyncio.CancelledError


def tells_durably(message: Message) -> bool:
    """Whether the handler told something that its commit must store."""
    return message.outbox is not None and any(told.durable is not None for told in message.outbox)


def _own_turn(message: Message, cell: Cell) -> None:
    """Give a nested run the turn if the run that it was inside is over: what it changed is its own then."""
    if message.is_nested and cell.load == 0:
        cell.nested -= 1
        cell.load = EXCLUSIVE
        message.is_nested = False


async def settled(future: "asyncio.Future[Any]") -> bool:
    """Wait for a commit, whose outcome must be known, through cancellations; return whether there was one."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


def roll_back(cell: Cell, *, shared: bool) -> None:
    """Make the instance's state what is committed; beside other readers only if it differs."""
    record, codec = cell.record, cell.hosted.spec.state
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
