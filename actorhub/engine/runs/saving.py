"""Commits of runs that go on: a step, an item of a stream, a hook, `save()`, and the user's own SQL."""

import asyncio
from typing import Any, Final

import msgspec

from actorhub.core.errors import NotConnected
from actorhub.engine.model.records import DEAD, RUNNING, Cell, Message, RunKind
from actorhub.engine.runs.commits import Commits, tells_durably
from actorhub.engine.runs.completion import RUN_ONLY, Completion
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.store_answers import settled, store_error
from actorhub.storage.checkpoint_ports import CheckpointStore, CheckpointWrite
from actorhub.storage.message_ports import RunTransaction
from actorhub.storage.ports import Fenced, VersionConflict

_REFUSED: Final = (Fenced, VersionConflict)


class StepRun(Message):
    """A step under way, for `current()`: what it tells and its SQL are committed with its result."""

    __slots__ = ("parent",)

    run_kind = RunKind.STEP

    def __init__(self, parent: Message, cell: Cell) -> None:
        super().__init__(parent.spec, parent.entity_id)
        self.parent = parent
        self.cell = cell
        self.epoch = parent.epoch
        self.message_id = parent.message_id
        self.headers = parent.headers
        self.chain = parent.chain
        self.phase = RUNNING


class Saving:
    """Writes a part of a run, and lets its tells go then. A cancellation is raised once the outcome is known."""

    def __init__(
        self, *, scheduler: Scheduler, commits: Commits, completion: Completion, checkpoints: CheckpointStore
    ) -> None:
        self._scheduler = scheduler
        self._commits = commits
        self._completion = completion
        self._checkpoints = checkpoints

    async def save_state(self, message: Message, cell: Cell, state: Any) -> None:
        """Commit the state of the entity whose handler runs, as it is now, or as `state` says unless that is `UNSET`.

        Raises:
            RuntimeError: the handler may not commit.
            PersistenceError: ownership was lost, or the store failed.
        """
        if message.spec.readonly or (message.is_nested and cell.phase != DEAD):
            raise RuntimeError(f"{message.what}: a readonly handler, or one inside another's turn, cannot save")
        if state is not msgspec.UNSET:
            cell.instance.state = state
        if (data := self._completion.changed_state(cell)) is not None:
            await self._commit_state(cell, message.epoch, data)

    async def commit_part(self, message: Message, cell: Cell, data: bytes | None) -> None:
        """Write the state `data` (if any) and what was told durably so far, of a run that goes on; then send the tells.

        Raises:
            PersistenceError: refused or failed; nothing was written, and nothing is sent.
        """
        if tells_durably(message):
            future = self._commits.run(cell, self._commits.commit_of(message, cell, data))
            cancelled = await settled(future)
            if (error := store_error(future)) is not None:
                message.drop_outbox()
                raise self._completion.refused(cell, error)
            self._completion.count_commit(cell, data)
            if cancelled:
                self._scheduler.send_told(message)
                raise asyncio.CancelledError
        elif data is not None:
            await self._commit_state(cell, message.epoch, data)
        self._scheduler.send_told(message)

    async def commit_step(self, step: StepRun, cell: Cell, write: CheckpointWrite) -> bool:
        """Write checkpoints of a run that goes on, with what its step told and its SQL; then send the tells.

        Returns:
            Whether a cancellation came meanwhile, which is the caller's to raise: all of it is written.

        Raises:
            PersistenceError: refused or failed; nothing is sent. Where the outcome is unknown, the activation is built
                anew, so that the next run finds what is stored.
            DuplicateKey: a told message has a key that was used with another payload; nothing is written.
        """
        transaction, step.transaction = step.transaction, None
        outcome = self._commits.run_alone(cell, self._commits.step_of(step, cell, write), transaction)
        cancelled = await settled(outcome)
        if (error := store_error(outcome)) is not None:
            step.drop_outbox()
            is_known = isinstance(error, RUN_ONLY) or not error.possibly_executed
            raise error if is_known and not isinstance(error, _REFUSED) else self._completion.refused(cell, error)
        self._scheduler.send_told(step)
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
        progress.check_quiet(message.what)
        outcome = self._commits.run_alone(cell, self._commits.commit_of(message, cell, data), None)
        cancelled = await settled(outcome)
        if (error := store_error(outcome)) is not None:
            if isinstance(error, _REFUSED):
                raise self._completion.refused(cell, error)
            progress.is_unsure = True
            raise error
        self._completion.count_commit(cell, data)
        if progress.is_unsure:
            # Without a state it may have been written twice.
            saved = await self._checkpoints.load(progress.scope)
            progress.generation = saved.generation - 1
            progress.is_unsure = False
        if cancelled:
            progress.closed()
            raise asyncio.CancelledError

    async def transaction_of(self, message: Message) -> RunTransaction:
        """Return the transaction of the handler that runs, begun now if it has none yet.

        Raises:
            RuntimeError: the handler may not commit, or its run is over.
            PersistenceError: the store failed, or has no connection free.
            ConfigurationError: the store has no SQL.
        """
        check_transaction(message)
        if message.transaction is None:
            begun = await self._commits.begin()
            if message.phase != RUNNING or message.transaction is not None:
                await begun.roll_back()
                if message.transaction is None:
                    raise NotConnected(f"{message.what}: its run is over")
            else:
                message.transaction = begun
        assert message.transaction is not None
        return message.transaction

    async def _commit_state(self, cell: Cell, epoch: int, data: bytes) -> None:
        future = self._commits.state(cell, epoch, data)
        cancelled = await settled(future)
        if (error := self._completion.state_committed(cell, data, future)) is not None:
            raise error
        if cancelled:
            raise asyncio.CancelledError


def check_transaction(message: Message) -> None:
    """Refuse own SQL where there is no commit that it could belong to.

    Raises:
        RuntimeError: says why.
    """
    if message.spec.readonly or message.is_nested:
        raise RuntimeError(f"{message.what}: a readonly handler, or one inside another's turn, has no transaction")
    if message.phase != RUNNING or message.spec.stream:
        raise RuntimeError(f"{message.what}: only the run of a handler that is no stream has a transaction")
    if message.run_kind is RunKind.MAIN_LOOP:
        raise RuntimeError(
            f"{message.what}: run() goes on until it is cancelled: use transaction() in a step, which commits with it"
        )
    if isinstance(message, StepRun) and message.parent.transaction is not None:
        # Handlers that all hold a connection and wait for a second one would wait for each other.
        raise RuntimeError(f"{message.what}: its run has a transaction already: do the steps that write SQL before it")
