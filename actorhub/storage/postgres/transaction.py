"""Transactions of handlers: the user's SQL and what the run leaves behind are committed together."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import msgspec

from actorhub.core.errors import DuplicateKey, PersistenceError
from actorhub.storage.checkpoint_ports import CheckpointWrite
from actorhub.storage.message_ports import RolledBack, RunCommit
from actorhub.storage.postgres.connection import Target, TransactionPool, deadline
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, translate
from actorhub.storage.postgres.message_groups import WRITTEN, run_columns, verdict_of
from actorhub.storage.postgres.message_rows import without_twins
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    PooledConnection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

MOST: Final = 8
"""Transactions at a time, in one process."""
BEGIN_LIMIT: Final = timedelta(seconds=5)
"""How long to wait for one of the connections."""
COMMIT_LIMIT: Final = timedelta(seconds=12)
UNDO_LIMIT: Final = timedelta(seconds=2)
_UNKNOWN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.StatementCompletionUnknownError,
)
"""The server did not say that it rolled back."""


class _Ending(msgspec.Struct, frozen=True):
    """Ends a connection that the pool may have got back already, as it does when a connection is lost."""

    connection: "PooledConnection"

    def terminate(self) -> None:
        """End it at once."""
        with contextlib.suppress(asyncpg.InterfaceError):
            self.connection.terminate()


class _Session(msgspec.Struct, frozen=True):
    """A connection in a transaction, and where it goes back to."""

    pool: TransactionPool
    connection: "PooledConnection"
    transaction: "Transaction"


class _Statements(msgspec.Struct, frozen=True):
    """What a transaction ends with; the search path is the role's own, so they name the namespace."""

    commit_runs: str
    write_notes: str

    @classmethod
    def of(cls, namespace: str) -> "_Statements":
        commit_runs = queries()["commit_runs"].replace("commit_runs(", f'"{namespace}".commit_runs(')
        write_notes = queries()["write_notes"].replace("write_notes(", f'"{namespace}".write_notes(')
        return cls(commit_runs, write_notes)


class Transactions:
    """Connections for transactions, called `name`, made when they are first needed and kept for a while."""

    def __init__(
        self, target: Target, name: str, fence_of: Callable[[str], int | None], counters: StorageCounters
    ) -> None:
        self._target = target
        self._name = name
        self._statements = _Statements.of(target.namespace)
        self._fence_of = fence_of
        self._counters = counters
        self._pool: TransactionPool | None = None
        self._making = asyncio.Lock()
        self._closed = False

    async def begin(self) -> "PostgresTransaction":
        """Return a transaction that was begun.

        Raises:
            PersistenceError: Postgres cannot be reached, or all connections stay busy for `BEGIN_LIMIT`.
        """
        connection = None
        pool = await self._ready()
        try:
            connection = await pool.acquire(timeout=BEGIN_LIMIT.total_seconds())
            if self._closed:
                raise PersistenceError("the storage is closed")
            outer = connection.transaction(isolation="read_committed")
            async with deadline(_Ending(connection), BEGIN_LIMIT):
                await outer.start()
        except FOREIGN_ERRORS as exc:
            await _let_go(pool, connection)
            if isinstance(exc, TimeoutError) and pool.get_idle_size() == 0 and pool.get_size() == MOST:
                raise PersistenceError(
                    f"cannot begin a transaction: all {MOST} connections of this process were busy for "
                    f"{BEGIN_LIMIT.total_seconds():.0f} seconds"
                ) from exc
            raise translate(exc, "begin a transaction") from exc
        except BaseException:
            await _let_go(pool, connection)
            raise
        session = _Session(pool, connection, outer)
        return PostgresTransaction(session, self._statements, self._fence_of, self._counters)

    async def aclose(self) -> None:
        """End every connection; transactions under way fail."""
        self._closed = True
        if self._pool is not None:
            self._pool.terminate()

    async def _ready(self) -> TransactionPool:
        async with self._making:
            if self._closed:
                raise PersistenceError("the storage is closed")
            if self._pool is None:
                self._pool = await self._target.transaction_pool(self._name, MOST)
            return self._pool


class PostgresTransaction:
    """A `RunTransaction` on a connection that nobody else has until it is committed or rolled back."""

    def __init__(
        self,
        session: _Session,
        statements: _Statements,
        fence_of: Callable[[str], int | None],
        counters: StorageCounters,
    ) -> None:
        self._pool = session.pool
        self._connection = session.connection
        self._outer = session.transaction
        self._statements = statements
        self._fence_of = fence_of
        self._counters = counters
        self._ended = False

    @property
    def connection(self) -> "PooledConnection":
        """What the user's SQL goes to; useless once the transaction has ended."""
        return self._connection

    def block(self) -> AbstractAsyncContextManager[Any]:
        """Return a savepoint: what is done in it is undone when it raises."""
        return self._connection.transaction()

    async def commit(self, run: RunCommit, incarnation: str) -> bool:
        """Write `run`, its notes too, in this transaction and commit it, checked like `MessageStore.commit_run`.

        Returns whether `run.next_start` was counted with it.

        Raises:
            Fenced, VersionConflict, NotPending, DuplicateKey, RolledBack: refused; all was rolled back.
            PersistenceError: the connection broke during the commit: the outcome is unknown.
        """
        try:
            counted = await self._write(without_twins(run), incarnation)
            async with deadline(_Ending(self._connection), COMMIT_LIMIT):
                await self._outer.commit()
        except FOREIGN_ERRORS as exc:
            self._counters.failed += 1
            raise _failure(exc) from exc
        except DuplicateKey:
            self._counters.refused += 1
            raise
        finally:
            await self.roll_back()
        self._counters.settled += 1
        self._counters.started += counted
        return counted

    async def roll_back(self) -> None:
        """Undo everything that is not committed and let go of the connection; bounded in time, can be called twice."""
        if self._ended:
            return
        self._ended = True
        try:
            if self._connection.is_in_transaction():
                async with deadline(_Ending(self._connection), UNDO_LIMIT):
                    await self._outer.rollback()
        except FOREIGN_ERRORS:
            _Ending(self._connection).terminate()
        finally:
            await _let_go(self._pool, self._connection)

    async def _write(self, run: RunCommit, incarnation: str) -> bool:
        if self._ended or not self._connection.is_in_transaction():
            raise PersistenceError(
                "the transaction was ended by the handler's own SQL, or by a lost connection", possibly_executed=True
            )
        if run.checkpoints is None:
            _, counted = await self._write_run(run, incarnation)
            return counted
        # With a next run, the verdict would not tell what is written now from what was before, with its notes.
        is_new, _ = await self._write_run(msgspec.structs.replace(run, next_start=None), incarnation)
        return is_new and await self._write_notes(run, run.checkpoints)

    async def _write_run(self, run: RunCommit, incarnation: str) -> tuple[bool, bool]:
        """Return whether all was written now, and whether the next run was counted with it."""
        arguments = (self._fence_of(incarnation), incarnation, *run_columns([run]))
        async with deadline(_Ending(self._connection), COMMIT_LIMIT):
            verdicts = await self._connection.fetchval(self._statements.commit_runs, *arguments)
        code = verdicts[0] if verdicts else WRITTEN
        verdict = verdict_of(code, run, incarnation)
        if isinstance(verdict, bool):
            return code == WRITTEN, verdict
        if isinstance(verdict, PersistenceError):
            self._counters.refused += 1
        raise verdict

    async def _write_notes(self, run: RunCommit, notes: CheckpointWrite) -> bool:
        """Write the notes of a run that was written now; return whether its next run was counted."""
        scope, following = notes.scope, run.next_start
        async with deadline(_Ending(self._connection), COMMIT_LIMIT):
            counted: bool = await self._connection.fetchval(
                self._statements.write_notes,
                scope.entity_type,
                scope.entity_id,
                scope.message_id,
                [checkpoint.name for checkpoint in notes.stored],
                [checkpoint.data for checkpoint in notes.stored],
                notes.closes,
                None if following is None else following.message_id,
                None if following is None else following.attempts,
            )
        return counted


def _failure(error: BaseException) -> PersistenceError:
    failure = translate(error, "commit the handler's transaction")
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, _UNKNOWN):
        return RolledBack(str(failure))
    failure.possibly_executed = True
    return failure


async def _let_go(pool: TransactionPool, connection: "PooledConnection | None") -> None:
    """Give the connection back; end it where that takes too long."""
    if connection is None:
        return
    try:
        async with deadline(_Ending(connection), UNDO_LIMIT):
            # The pool resets the session, and who still holds the connection cannot use it afterwards.
            await pool.release(connection, timeout=UNDO_LIMIT.total_seconds())
    except FOREIGN_ERRORS:
        return
