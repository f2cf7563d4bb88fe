"""Commits of runs that leave more behind than state: durable replies, durable tells, the user's own SQL."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.errors import ActorhubError, DuplicateKey, NotConnected
from actorhub.engine.durable.settlement import store_error
from actorhub.engine.model.cell import ACTIVE, DEAD, EXCLUSIVE, Cell
from actorhub.engine.model.durable_message import DurableMessage, new_row
from actorhub.engine.model.message import COMMITTING, RUNNING, Message
from actorhub.engine.runs.checkpoints import StepRun, closing_notes, is_body
from actorhub.engine.runs.completion import Results, commit_now, settled, tells_durably
from actorhub.engine.runs.scheduler import Turns
from actorhub.engine.supervision import Supervisor
from actorhub.storage.checkpoint_ports import CheckpointWrite
from actorhub.storage.message_ports import (
    MessageStore,
    NewMessage,
    NotPending,
    Outcome,
    RolledBack,
    RunCommit,
    RunStart,
    RunTransaction,
    StoredReply,
)
from actorhub.storage.ports import Fenced, VersionConflict

if TYPE_CHECKING:
    from asyncio import Future

_COMMIT_LIMIT: Final = 10.0
"""Seconds that a transaction's commit may take."""
_REFUSED: Final = (Fenced, VersionConflict)


class _Ending(msgspec.Struct):
    """What is done once a run is committed."""

    data: bytes | None
    """The state that is committed then."""
    body: bytes
    """The reply."""
    next_one: DurableMessage | None
    """The message whose run is counted along with it."""


class RunCommits:
    """Writes everything that a run leaves behind in one transaction, then lets its reply and its tells go."""

    def __init__(
        self,
        *,
        turns: Turns,
        results: Results,
        store: MessageStore,
        supervisor: Supervisor,
        incarnation: str,
        retention: float,
    ) -> None:
        self._turns = turns
        self._results = results
        self._store = store
        self._supervisor = supervisor
        self._incarnation = incarnation
        self._retention = retention
        self.shard_of: Callable[[Message], ShardId]
        """Returns the shard of a message's target."""

    def commit(self, message: Message, cell: Cell, data: bytes | None, body: bytes) -> None:
        """Write the state `data` (if any), the reply, and what was told durably; then reply."""
        message.phase = COMMITTING
        ending = _Ending(data, body, self._next(message, cell))
        try:
            if message.progress is not None:
                message.progress.check_quiet(message)
            run = self._run(message, cell, ending)
        except (ActorhubError, RuntimeError) as error:
            message.phase = RUNNING
            self._results.raised(message, error)
            return
        if message.transaction is None and run.checkpoints is None:
            outcome = self._written(cell, run)
        else:
            outcome = self._written_alone(cell, run, message.transaction)
        outcome.add_done_callback(partial(self._committed, message, ending), context=self._turns.context)

    async def commit_part(self, message: Message, cell: Cell, data: bytes | None) -> None:
        """Write the state `data` (if any) and what was told durably so far, of a run that goes on; then send the tells.

        Raises:
            PersistenceError: refused or failed; nothing was written, and nothing is sent.
        """
        if tells_durably(message):
            future = self._written(cell, self._run(message, cell, _Ending(data, b"", None)))
            cancelled = await settled(future)
            if (error := store_error(future)) is not None:
                message.drop_outbox()
                raise self._results.refused(cell, error)
            self._results.note_commit(cell, data)
            if cancelled:
                self._turns.send_told(message)
                raise asyncio.CancelledError
        elif data is not None:
            await commit_now(cell, message.epoch, data)
        self._turns.send_told(message)

    async def commit_step(self, step: StepRun, cell: Cell, notes: CheckpointWrite) -> bool:
        """Write the notes of a run that goes on, with what its step told and its SQL; then send the tells.

        Returns:
            Whether a cancellation came meanwhile, which is the caller's to raise: all of it is written.

        Raises:
            PersistenceError: refused or failed; nothing is sent. Where the outcome is unknown, the activation is built
                anew, so that the next run finds what is stored.
            DuplicateKey: a told message has a key that was used with another payload; nothing is written.
        """
        run = RunCommit(
            shard=cell.shard.id,
            epoch=step.epoch,
            entity_type=cell.hosted.spec.name,
            entity_id=cell.entity_id,
            outbox=self._outbox(step),
            checkpoints=notes,
        )
        transaction, step.transaction = step.transaction, None
        outcome = self._written_alone(cell, run, transaction)
        cancelled = await settled(outcome)
        if (error := store_error(outcome)) is not None:
            step.drop_outbox()
            is_known = isinstance(error, NotPending | DuplicateKey | RolledBack) or not error.possibly_executed
            raise error if is_known and not isinstance(error, _REFUSED) else self._results.refused(cell, error)
        self._turns.send_told(step)
        return cancelled

    async def commit_save(self, message: Message, cell: Cell, data: bytes | None) -> None:
        """Write the state `data` (if any) of a singleton's `run` that goes on; the caller's progress is closed with it.

        A cancellation is raised once that is done, and the progress closed here.

        Raises:
            PersistenceError: refused or failed. Repeating it is harmless.
            RuntimeError: steps are under way.
        """
        progress = message.progress
        assert progress is not None
        progress.check_quiet(message)
        outcome = self._written_alone(cell, self._run(message, cell, _Ending(data, b"", None)), None)
        cancelled = await settled(outcome)
        if (error := store_error(outcome)) is not None:
            if isinstance(error, _REFUSED):
                raise self._results.refused(cell, error)
            progress.is_unsure = True
            raise error
        self._results.note_commit(cell, data)
        if progress.is_unsure:
            # Without a state it may have been written twice.
            saved = await cell.shard.host.storage.checkpoints.load(progress.scope)
            progress.generation = saved.generation - 1
            progress.is_unsure = False
        if cancelled:
            progress.closed()
            raise asyncio.CancelledError

    def roll_back(self, message: Message) -> None:
        """Undo the transaction of a run that failed, then give its turn back."""
        _ = self._supervisor.spawn(self._roll_back(message), "roll back transaction")

    def _next(self, message: Message, cell: Cell) -> DurableMessage | None:
        """Return the durable message that gets the turn after this run, if it can be counted with its commit."""
        if cell.queue is None or message.is_nested or cell.load != EXCLUSIVE or cell.phase != ACTIVE:
            return None
        head = cell.queue[0]
        if isinstance(head, DurableMessage) and head.is_stored and head.attempts < head.spec.retry.attempts:
            return None if head.is_counted else head
        return None

    def _run(self, message: Message, cell: Cell, ending: "_Ending") -> RunCommit:
        data, next_one = ending.data, ending.next_one
        is_durable = message.spec.durable and not message.spec.stream
        return RunCommit(
            shard=cell.shard.id,
            epoch=message.epoch,
            entity_type=cell.hosted.spec.name,
            entity_id=cell.entity_id,
            version=0 if data is None or cell.record is None else cell.record.version + 1,
            data=b"" if data is None else data,
            message_id=message.message_id if is_durable else 0,
            reply=StoredReply(Outcome.VALUE, ending.body) if is_durable else None,
            retention=message.spec.retention or self._retention,
            outbox=self._outbox(message),
            next_start=None
            if next_one is None
            else RunStart(next_one.message_id, cell.shard.id, message.epoch, next_one.attempts + 1),
            checkpoints=closing_notes(message),
        )

    def _outbox(self, message: Message) -> tuple[NewMessage, ...]:
        if not message.outbox:
            return ()
        return tuple(new_row(told, self.shard_of(told)) for told in message.outbox if told.durable is not None)

    def _written(self, cell: Cell, run: RunCommit) -> "Future[bool]":
        return self._store.commit_run(run, self._incarnation) if cell.may_commit else _refused(cell)

    def _written_alone(self, cell: Cell, run: RunCommit, transaction: RunTransaction | None) -> "Future[bool]":
        """Commit a run in a transaction of its own: the handler's where it has one."""
        if not cell.may_commit:
            return _refused(cell)
        outcome: Future[bool] = asyncio.get_running_loop().create_future()
        commit = self._store.commit_with_checkpoints if transaction is None else transaction.commit
        work = self._settle(commit(run, self._incarnation), transaction, outcome)
        _ = self._supervisor.spawn(work, "commit transaction")
        return outcome

    async def _settle(self, work: Awaitable[bool], transaction: RunTransaction | None, outcome: "Future[bool]") -> None:
        """Settle `outcome`; what the store refuses is an answer, and no failure of this task."""
        try:
            async with asyncio.timeout(_COMMIT_LIMIT):
                counted = await work
        except (ActorhubError, TimeoutError) as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(counted)
        finally:
            if transaction is not None:
                await transaction.roll_back()
            outcome.cancel()

    def _committed(self, message: Message, ending: "_Ending", outcome: "Future[bool]") -> None:
        cell = message.cell
        assert cell is not None
        message.transaction = None
        error = store_error(outcome)
        if error is None:
            self._results.note_commit(cell, ending.data)
            if ending.next_one is not None and outcome.result():
                ending.next_one.attempts += 1
                ending.next_one.is_counted = True
            self._results.done(message, ending.body)
        elif isinstance(error, NotPending | DuplicateKey | RolledBack) and cell.phase != DEAD:
            # Nothing of it is wrong with the entity: only this run does not count.
            message.phase = RUNNING
            self._results.raised(message, error)
        else:
            self._results.not_done(message, self._results.refused(cell, error))

    async def _roll_back(self, message: Message) -> None:
        transaction, message.transaction = message.transaction, None
        try:
            if transaction is not None:
                await transaction.roll_back()
        finally:
            self._turns.ended(message)


def _refused(cell: Cell) -> "Future[bool]":
    refused: Future[bool] = asyncio.get_running_loop().create_future()
    refused.set_exception(Fenced(f"{cell.address}: its runner cannot prove that it still owns the shard"))
    return refused


async def transaction_of(message: Message, cell: Cell) -> RunTransaction:
    """Return the transaction of the handler that runs, begun now if it has none yet.

    Raises:
        RuntimeError: the handler may not commit, or its run is over.
        PersistenceError: the store failed, or has no connection free.
        ConfigurationError: the store has no SQL.
    """
    if message.spec.readonly or message.is_nested:
        raise RuntimeError(f"{message.what}: a readonly handler, or one inside another's turn, has no transaction")
    if message.phase != RUNNING or message.spec.stream:
        raise RuntimeError(f"{message.what}: only the run of a handler that is no stream has a transaction")
    if is_body(message) and not isinstance(message, StepRun):
        raise RuntimeError(
            f"{message.what}: run() goes on for ever: use transaction() in a step, which commits with it"
        )
    if isinstance(message, StepRun) and message.parent.transaction is not None:
        # Handlers that all hold a connection and wait for a second one would wait for each other.
        raise RuntimeError(f"{message.what}: its run has a transaction already: do the steps that write SQL before it")
    if message.transaction is None:
        begun = await cell.shard.host.messages.begin()
        if message.phase != RUNNING or message.transaction is not None:
            await begun.roll_back()
            if message.transaction is None:
                raise NotConnected(f"{message.what}: its run is over")
        else:
            message.transaction = begun
    assert message.transaction is not None
    return message.transaction
