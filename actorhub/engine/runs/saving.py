"""Commits in the middle of a run: of a step, an item of a stream, a hook, `save()`, and the user's own SQL."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from typing_extensions import override

from actorhub.core.errors import DuplicateKey, NotConnected
from actorhub.engine.model.asked import AskedMessage
from actorhub.engine.model.records import DEAD, RUNNING, Cell, Message, RunKind
from actorhub.engine.model.run import Run
from actorhub.engine.runs.commits import Commits, tells_durably
from actorhub.engine.runs.completion import RUN_ONLY, Completion
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.store_answers import Unanswered, store_error, until_answered
from actorhub.engine.supervision import Supervisor
from actorhub.storage.checkpoint_ports import CheckpointStore, CheckpointWrite
from actorhub.storage.message_ports import RunTransaction
from actorhub.storage.ports import Fenced, VersionConflict

_REFUSED: Final = (Fenced, VersionConflict)
_BEGIN_LIMIT: Final = 30.0
"""Seconds that it may take to begin a transaction; stores give up before."""


class StepRun(Run, eq=False, kw_only=True):
    """A step under way, as `current()` sees it: its tells and its SQL are committed with its result."""

    parent: Run
    name: str = ""
    phase: int = RUNNING
    """Of the step; the run around it goes on."""

    @classmethod
    def within(cls, parent: Run, name: str = "") -> "StepRun":
        """Return a step of the run `parent`."""
        return cls(parent.message, parent.cell, parent=parent, name=name)

    @override
    def send_once(self, call: Message, payload: bytes, step: str = "") -> AskedMessage | None:
        return self.parent.send_once(call, payload, self.name)

    @property
    @override
    def kind(self) -> RunKind:
        return RunKind.STEP

    @property
    @override
    def is_running(self) -> bool:
        return self.phase == RUNNING


@asynccontextmanager
async def one_save_at_a_time(run: Run) -> AsyncGenerator[None, None]:
    """Keep the run's other saves out during the block; the run does not end before the block does.

    Two commits of one run under way at once would both be the version after the same one, and so would the run's own:
    the store refuses the second as it refuses another owner's.

    Raises:
        RuntimeError: the run is over, for example in a task that outlives it. Its entity may be in another run by now,
            whose half-done changes are not this one's to commit.
    """
    _check_running(run)
    if run.saves is None:
        run.saves = asyncio.Lock()
    async with run.saves:
        while run.inner and run.cell.phase != DEAD:
            # What runs within this run may be in the middle of a change, and may yet take it back.
            run.unnested = asyncio.get_running_loop().create_future()
            await run.unnested
        _check_running(run)
        run.parts += 1
        try:
            yield
        finally:
            run.end_part()


def _check_running(run: Run) -> None:
    if not run.is_running:
        raise RuntimeError(f"{run.what}: its run is over, so it cannot save")


class Saving:
    """Commits a part of a run, and then sends what it told. A cancellation is raised once the outcome is known.

    That is because the commit goes on regardless, and what this process believes to be committed depends on its
    outcome.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        commits: Commits,
        completion: Completion,
        checkpoints: CheckpointStore,
        supervisor: Supervisor,
    ) -> None:
        self._scheduler = scheduler
        self._commits = commits
        self._completion = completion
        self._checkpoints = checkpoints
        self._supervisor = supervisor

    async def save_state(self, run: Run, state: Any) -> None:
        """Commit the state of the entity whose handler runs, as it is now; or `state`, unless that is `UNSET`.

        Raises:
            RuntimeError: the handler may not commit.
            PersistenceError: ownership was lost, or the store failed.
        """
        message, cell = run.message, run.cell
        if message.spec.readonly or (message.is_nested and cell.phase != DEAD):
            raise RuntimeError(f"{message.what}: a readonly handler, or one within another's turn, cannot save")
        if message.producer is not None and not message.producer.has_turn:
            # A task that the generator left running, or its clean-up after the activation was over.
            raise RuntimeError(f"{message.what}: a stream can save only while a step of it runs")
        if state is not msgspec.UNSET:
            cell.instance.state = state
        if (data := self._completion.changed_state(cell)) is not None:
            await self._commit_state(cell, message.epoch, data)

    async def commit_part(self, run: Run, data: bytes | None) -> None:
        """Commit the state `data` (if any) and the durable tells so far of a run that goes on; then send what it told.

        Raises:
            PersistenceError: refused or failed. Nothing is sent.
        """
        cell = run.cell
        if tells_durably(run):
            commit = self._commits.commit_of(run, data)
            future = self._commits.run(cell, commit)
            cancelled = await until_answered(future, cell.shard)
            error = store_error(future)
            if isinstance(error, DuplicateKey):
                future = self._commits.again(run, commit, error)
                cancelled |= await until_answered(future, cell.shard)
                error = store_error(future)
            if error is not None:
                # None of it is committed, and it must not leave with a later part of the run.
                run.outbox = None
                raise self._completion.on_refused(cell, error)
            self._completion.count_commit(cell, data)
            if cancelled:
                # These tells are committed: they leave, whatever becomes of the run.
                self._scheduler.send_told(run)
                raise asyncio.CancelledError
        elif data is not None:
            try:
                await self._commit_state(cell, run.message.epoch, data)
            except Unanswered:
                raise
            except asyncio.CancelledError:
                # The state is committed, and what it was committed with must not be lost.
                self._scheduler.send_told(run)
                raise
        self._scheduler.send_told(run)

    async def commit_step(self, step: StepRun, write: CheckpointWrite) -> bool:
        """Commit checkpoints of a run that goes on, with its step's tells and SQL; then send what it told.

        Returns:
            Whether a cancellation came meanwhile. The caller must raise it; everything is written.

        Raises:
            PersistenceError: refused or failed. Nothing is sent. Where the outcome is unknown the activation is built
                again, so that the next run asks the store what it holds.
            DuplicateKey: a told message has a key that was used with another payload. Nothing was written.
        """
        # From here on the transaction ends with the commit, whatever becomes of it; the step must not roll it back as
        # well.
        transaction, step.transaction = step.transaction, None
        parent = step.parent
        parent.step_transactions = [each for each in parent.step_transactions if each is not transaction]
        outcome = self._commits.run_alone(step, self._commits.step_of(step, write), transaction)
        cancelled = await until_answered(outcome, step.cell.shard)
        if (error := store_error(outcome)) is not None:
            step.outbox = None
            # Known not to be written, and nothing is wrong with the activation: the run may go on and handle the error.
            # Else the next run must find out what is stored.
            is_known = isinstance(error, RUN_ONLY) or not error.possibly_executed
            if is_known and not isinstance(error, _REFUSED):
                raise error
            raise self._completion.on_refused(step.cell, error)
        self._scheduler.send_told(step)
        return cancelled

    async def commit_save(self, run: Run, data: bytes | None) -> None:
        """Commit the state `data` (if any) of a singleton's `run` that goes on, and close the scope of its steps.

        The caller then calls `Progress.on_closed`; if a cancellation is raised, which is once the outcome is known,
        that has been done.

        Raises:
            PersistenceError: refused or failed. Repeating it is harmless.
            RuntimeError: steps are still running.
        """
        cell, progress = run.cell, run.progress
        assert progress is not None
        progress.check_quiet(run.what)
        outcome = self._commits.run_alone(run, self._commits.commit_of(run, data), None)
        cancelled = await until_answered(outcome, cell.shard)
        if (error := store_error(outcome)) is not None:
            if isinstance(error, _REFUSED):
                raise self._completion.on_refused(cell, error)
            progress.is_unsure = True
            raise error
        self._completion.count_commit(cell, data)
        if progress.is_unsure:
            # An earlier attempt failed with an unknown outcome. With a changed state its repetition is recognized by
            # the version; without one it may have closed the scope a second time. The store knows the generation.
            saved = await self._checkpoints.load(progress.scope)
            progress.generation = saved.generation - 1
            progress.is_unsure = False
        if cancelled:
            progress.on_closed()
            raise asyncio.CancelledError

    async def transaction_of(self, run: Run) -> RunTransaction:
        """Return the transaction of the running handler, begun now if it has none yet.

        Raises:
            RuntimeError: the handler may not commit, or its run is over.
            PersistenceError: the store failed, or has no connection free.
            ConfigurationError: the store has no SQL.
        """
        check_transaction(run)
        if run.transaction is None:
            # In a task of its own: a handler that is terminated while it waits here takes no further step.
            await self._supervisor.bounded(self._begin(run), "begin transaction", _BEGIN_LIMIT)
            if run.transaction is None:
                raise NotConnected(f"{run.what}: its run is over")
        return run.transaction

    async def _begin(self, run: Run) -> None:
        begun = await self._commits.begin()
        # Meanwhile the run may have ended, or another of its tasks may have begun the transaction.
        is_alive = run.is_running and (not isinstance(run, StepRun) or not run.parent.is_over)
        if not is_alive or run.transaction is not None:
            await begun.roll_back()
            return
        run.transaction = begun
        if isinstance(run, StepRun):
            run.parent.step_transactions = [*run.parent.step_transactions, begun]

    async def _commit_state(self, cell: Cell, epoch: int, data: bytes) -> None:
        future = self._commits.state(cell, epoch, data)
        cancelled = await until_answered(future, cell.shard)
        if (error := self._completion.note_state_commit(cell, data, future)) is not None:
            raise error
        if cancelled:
            raise asyncio.CancelledError


def check_transaction(run: Run) -> None:
    """Refuse the user's own SQL where there is no commit that it could be part of.

    Raises:
        RuntimeError: there is none; the text says why.
    """
    if run.spec.readonly or (run.kind is not RunKind.STEP and run.message.is_nested):
        raise RuntimeError(f"{run.what}: a readonly handler, or one within another's turn, has no transaction")
    if not run.is_running or run.spec.stream:
        raise RuntimeError(f"{run.what}: only a running handler that is not a stream has a transaction")
    if run.kind is RunKind.MAIN_LOOP:
        raise RuntimeError(
            f"{run.what}: run() never ends with a commit: use transaction() in a step, which is committed by itself"
        )
    if isinstance(run, StepRun) and run.parent.transaction is not None:
        # Handlers that each hold a connection and wait for a second one could wait for each other forever.
        raise RuntimeError(f"{run.what}: its run has a transaction already: run steps that write SQL before it")
