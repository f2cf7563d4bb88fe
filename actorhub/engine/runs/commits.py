"""What the store is asked to write when a run ends, or commits a part of itself. `runs.completion` replies."""

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from actorhub.core.errors import ActorhubError, DuplicateKey, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.model.durable_message import DurableMessage, new_row
from actorhub.engine.model.records import ACTIVE, EXCLUSIVE, Cell, Message
from actorhub.engine.model.run import Run
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.runs.stored_payloads import outbox_as_earlier
from actorhub.engine.supervision import Supervisor
from actorhub.storage.checkpoint_ports import CheckpointWrite
from actorhub.storage.message_ports import (
    MessageKey,
    MessageStore,
    NewMessage,
    Outcome,
    RunCommit,
    RunStart,
    RunTransaction,
    StoredReply,
)
from actorhub.storage.ports import Fenced, StateCommit, Storage

_log: Final = get_logger("actorhub.commits")

_Write: TypeAlias = Callable[[RunCommit, str], Awaitable[bool]]

_COMMIT_LIMIT: Final = 10.0
"""Seconds that a transaction's commit may take."""


class Commits:
    """Asks the store for commits. Every answer is a future; the caller draws the consequences."""

    def __init__(
        self, *, storage: Storage, supervisor: Supervisor, incarnation: str, sharding: Sharding, retention: float
    ) -> None:
        self._storage = storage
        self._store: MessageStore = storage.messages
        self._supervisor = supervisor
        self._incarnation = incarnation
        self._sharding = sharding
        self._retention = retention

    def state(self, cell: Cell, epoch: int, data: bytes) -> "Future[None]":
        """Hand the cell's next state to the group commit."""
        assert cell.record is not None
        # The lease is compared with the clock once more, after the handler, because the process may have been frozen in
        # it. Once another runner has taken the shard the store refuses the commit; until then only the lease does.
        if not cell.can_commit:
            return _refusal(cell)
        entity_type = cell.hosted_type.spec.name
        record = cell.record
        written = record.stored_form(data)
        commit = StateCommit(cell.shard.id, epoch, entity_type, cell.entity_id, record.version + 1, written)
        return self._storage.commit_state(commit, self._incarnation)

    def run(self, cell: Cell, run: RunCommit) -> "Future[bool]":
        """Hand what a run leaves behind to the group commit; the answer is whether its `next_start` was counted."""
        return self._store.commit_run(run, self._incarnation) if cell.can_commit else _refusal(cell)

    def again(self, run: Run, commit: RunCommit, clash: DuplicateKey) -> "Future[bool]":
        """Commit a run once more, of whose outbox a key was refused, if it means what was told earlier with the key.

        The answer is `clash` if it does not.
        """
        outcome: Future[bool] = asyncio.get_running_loop().create_future()
        work = self._as_earlier(run.cell, self._store.commit_run, commit, run.outbox or (), clash=clash)
        _ = self._supervisor.spawn(self._settle(work, None, outcome), "compare payloads")
        return outcome

    def run_alone(self, run: Run, commit: RunCommit, transaction: RunTransaction | None) -> "Future[bool]":
        """Commit what a run leaves behind in a transaction of its own, which is the handler's if it began one.

        Runs with checkpoints or with the user's own SQL are rare beside plain ones: they share no group commit, and
        take a connection of a small pool for about two milliseconds each.
        """
        if not run.cell.can_commit:
            return _refusal(run.cell)
        outcome: Future[bool] = asyncio.get_running_loop().create_future()
        write = self._store.commit_with_checkpoints if transaction is None else transaction.commit
        work = self._write_alone(run.cell, write, commit, run.outbox or ())
        _ = self._supervisor.spawn(self._settle(work, transaction, outcome), "commit transaction")
        return outcome

    def commit_of(
        self, run: Run, data: bytes | None, *, body: bytes = b"", next_one: DurableMessage | None = None
    ) -> RunCommit:
        """Return everything that a run leaves behind, as one commit.

        Args:
            run: The run.
            data: The entity's new state, if it changed.
            body: The reply of a durable message.
            next_one: The message whose run is counted by the same commit.
        """
        message, cell = run.message, run.cell
        is_durable = isinstance(message, DurableMessage)
        entity_type, entity_id = cell.entity
        return RunCommit(
            shard=cell.shard.id,
            epoch=message.epoch,
            entity_type=entity_type,
            entity_id=entity_id,
            version=0 if data is None or cell.record is None else cell.record.version + 1,
            data=b"" if data is None or cell.record is None else cell.record.stored_form(data),
            message_id=message.message_id if is_durable else 0,
            reply=StoredReply(Outcome.VALUE, body) if is_durable else None,
            retention=message.spec.retention or self._retention,
            outbox=self._outbox(run),
            next_start=None
            if next_one is None
            else RunStart(next_one.message_id, cell.shard.id, message.epoch, next_one.attempts + 1),
            checkpoints=_closing(run),
        )

    def step_of(self, step: Run, checkpoints: CheckpointWrite) -> RunCommit:
        """Return what a step leaves behind: its checkpoint, and what it told."""
        cell = step.cell
        entity_type, entity_id = cell.entity
        return RunCommit(
            shard=cell.shard.id,
            epoch=step.message.epoch,
            entity_type=entity_type,
            entity_id=entity_id,
            outbox=self._outbox(step),
            checkpoints=checkpoints,
        )

    async def begin(self) -> RunTransaction:
        """Return a new transaction for a handler's own SQL.

        Raises:
            PersistenceError: the store failed, or has no connection free.
            ConfigurationError: the store has no SQL.
        """
        return await self._store.begin()

    def free_keys(self, keys: Sequence[MessageKey]) -> "Future[None]":
        """Let the keys of messages that ended with errors be used again; what is returned is done in any case."""
        return self._supervisor.spawn(self._free_keys(keys), "free keys")

    async def _free_keys(self, keys: Sequence[MessageKey]) -> None:
        try:
            await self._store.free_keys(keys)
        except PersistenceError as error:
            _log.warning("keys were not freed, so a run that is repeated gets the error of an ask once more: %s", error)

    def roll_back(self, run: Run, then: Callable[[Message], None]) -> None:
        """Undo the transaction of a run that failed, and call `then` once its locks are free."""
        _ = self._supervisor.spawn(_roll_back(run, then), "roll back transaction")

    def roll_back_steps(self, run: Run) -> None:
        """Undo the transactions of the steps of a run that was given up: it may not come to do so itself."""
        for transaction in run.step_transactions:
            _ = self._supervisor.spawn(transaction.roll_back(), "roll back transaction")

    def _outbox(self, run: Run) -> tuple[NewMessage, ...]:
        if not run.outbox:
            return ()
        durable = [told for told in run.outbox if told.delivery is not None]
        return tuple(new_row(told, self._sharding.shard_of_target(told)) for told in durable)

    async def _write_alone(self, cell: Cell, write: _Write, commit: RunCommit, told: Sequence[Message]) -> bool:
        try:
            return await write(commit, self._incarnation)
        except DuplicateKey as clash:
            return await self._as_earlier(cell, write, commit, told, clash=clash)

    async def _as_earlier(
        self, cell: Cell, write: _Write, commit: RunCommit, told: Sequence[Message], *, clash: DuplicateKey
    ) -> bool:
        specs = {message.message_id: message.spec for message in told}
        outbox = await outbox_as_earlier(self._store, commit.outbox, specs)
        if outbox is None:
            raise clash
        if not cell.can_commit:
            raise _lost(cell)
        return await write(msgspec.structs.replace(commit, outbox=outbox), self._incarnation)

    async def _settle(self, work: Awaitable[bool], transaction: RunTransaction | None, outcome: "Future[bool]") -> None:
        """Settle `outcome`; a refusal by the store is an answer, not a failure of this task."""
        try:
            async with asyncio.timeout(_COMMIT_LIMIT):
                counted = await work
        except (ActorhubError, TimeoutError) as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(counted)
        finally:
            # After a commit both do nothing. Otherwise the locks must go, and whoever waits must learn that the process
            # is leaving, which cancelled this.
            if transaction is not None:
                await transaction.roll_back()
            outcome.cancel()


async def _roll_back(run: Run, then: Callable[[Message], None]) -> None:
    transaction, run.transaction = run.transaction, None
    try:
        if transaction is not None:
            await transaction.roll_back()
    finally:
        then(run.message)


def next_to_count(message: Message, cell: Cell) -> DurableMessage | None:
    """Return the durable message that runs after this one, if the commit of this run can count it."""
    # After a nested or a shared run, or in an activation that closes, the head of the queue need not be next.
    if cell.queue is None or message.is_nested or cell.load != EXCLUSIVE or cell.phase != ACTIVE:
        return None
    head = cell.queue[0]
    if isinstance(head, DurableMessage) and head.is_stored and head.spec.retry.allows(head.attempts):
        return None if head.is_counted else head
    return None


def tells_durably(run: Run) -> bool:
    """Whether the handler told something durable, which its commit must store."""
    return run.outbox is not None and any(told.delivery is not None for told in run.outbox)


def _closing(run: Run) -> CheckpointWrite | None:
    """Return what the run's commit does to its checkpoints; `None` where it has none."""
    progress = run.progress
    return None if progress is None else CheckpointWrite(scope=progress.scope, closes=True)


def _refusal(cell: Cell) -> "Future[Any]":
    refused: Future[Any] = asyncio.get_running_loop().create_future()
    refused.set_exception(_lost(cell))
    return refused


def _lost(cell: Cell) -> Fenced:
    return Fenced(f"{cell.address}: its runner cannot prove that it still owns the shard")
