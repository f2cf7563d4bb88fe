"""Transactions of handlers: the user's SQL and what the run leaves behind are committed together."""

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import msgspec
from typing_extensions import override

from actorhub.core.errors import DuplicateKey, PersistenceError
from actorhub.storage.checkpoint_ports import CheckpointWrite
from actorhub.storage.message_ports import RolledBack, RunCommit, RunTransaction
from actorhub.storage.postgres.connection import Database, TransactionPool, deadline
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, translate
from actorhub.storage.postgres.message_batches import FenceOf, RunVerdict, run_outcome
from actorhub.storage.postgres.message_columns import run_arguments
from actorhub.storage.postgres.message_requests import deduplicated
from actorhub.storage.postgres.queries import statement_in
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
    """What a transaction ends with. They name the namespace: the search path is the role's own, for the user's SQL."""

    commit_runs: str
    write_checkpoints: str

    @classmethod
    def of(cls, namespace: str) -> "_Statements":
        return cls(statement_in(namespace, "commit_runs"), statement_in(namespace, "write_checkpoints"))


class Transactions:
    """Connections for transactions, called `name`, made when they are first needed and kept for a while."""

    def __init__(self, database: Database, name: str, fence_of: FenceOf, counters: StorageCounters) -> None:
        self._database = database
        self._name = name
        self._statements = _Statements.of(database.namespace)
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
                self._pool = await self._database.transaction_pool(self._name, MOST)
            return self._pool


class PostgresTransaction(RunTransaction):
    """A `RunTransaction` on a connection that nobody else has until it is committed or rolled back."""

    def __init__(
        self,
        session: _Session,
        statements: _Statements,
        fence_of: FenceOf,
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
    @override
    def connection(self) -> "PooledConnection":
        return self._connection

    @override
    def block(self) -> AbstractAsyncContextManager[Any]:
        return self._connection.transaction()

    @override
    async def commit(self, run: RunCommit, incarnation: str) -> bool:
        try:
            counted = await self._write(deduplicated(run), incarnation)
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

    @override
    async def roll_back(self) -> None:
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
        # A run that was written before was written with its checkpoints, and they must not be written again: a second
        # closing would forget the steps of the next generation. A next run would blur the verdict, which says of one
        # that is not counted "written, now or before"; so it is counted with the checkpoints.
        is_new, _ = await self._write_run(msgspec.structs.replace(run, next_start=None), incarnation)
        return is_new and await self._write_checkpoints(run, run.checkpoints)

    async def _write_run(self, run: RunCommit, incarnation: str) -> tuple[bool, bool]:
        """Return whether all was written now, and whether the next run was counted with it."""
        arguments = (self._fence_of(incarnation), incarnation, *run_arguments([run]))
        async with deadline(_Ending(self._connection), COMMIT_LIMIT):
            verdicts = await self._connection.fetchval(self._statements.commit_runs, *arguments)
        verdict = verdicts[0] if verdicts else RunVerdict.WRITTEN
        outcome = run_outcome(verdict, run, incarnation)
        if isinstance(outcome, bool):
            return verdict == RunVerdict.WRITTEN, outcome
        if isinstance(outcome, PersistenceError):
            self._counters.refused += 1
        raise outcome

    async def _write_checkpoints(self, run: RunCommit, write: CheckpointWrite) -> bool:
        """Write the checkpoints of a run that was written now; return whether its next run was counted."""
        scope, following = write.scope, run.next_start
        async with deadline(_Ending(self._connection), COMMIT_LIMIT):
            counted: bool = await self._connection.fetchval(
                self._statements.write_checkpoints,
                scope.entity_type,
                scope.entity_id,
                scope.message_id,
                [checkpoint.name for checkpoint in write.stored],
                [checkpoint.data for checkpoint in write.stored],
                write.closes,
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
