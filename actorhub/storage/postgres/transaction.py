"""Transactions of handlers: the user's SQL and what the run leaves behind are committed together."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import msgspec
from typing_extensions import override

from actorhub.core.errors import DuplicateKey, PersistenceError
from actorhub.storage.checkpoint_ports import CheckpointWrite
from actorhub.storage.message_ports import RolledBack, RunCommit, RunTransaction
from actorhub.storage.postgres.connection import Connection, PoolMode, deadline, set_all
from actorhub.storage.postgres.connections import IDLE_LIMIT, Connections
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, limit_met, translate
from actorhub.storage.postgres.message_batches import FenceOf, RunVerdict, run_outcome
from actorhub.storage.postgres.message_columns import run_arguments
from actorhub.storage.postgres.message_requests import deduplicated
from actorhub.storage.postgres.queries import statement_in
from actorhub.storage.statistics import StorageCounters

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    TransactionPool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    PooledConnection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    AnyConnection: TypeAlias = "PooledConnection | Connection"

BEGIN_LIMIT: Final = timedelta(seconds=5)
"""How long to wait for one of the connections."""
_FULL_PAUSE: Final = 0.05
"""Seconds until a server that was full is asked again."""
_SETTINGS: Final = {
    # Handlers await other things between their statements; a commit holds its fence no longer than a statement.
    "idle_in_transaction_session_timeout": "15s",
    "statement_timeout": "10s",
}
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

    connection: "AnyConnection"

    def terminate(self) -> None:
        """End it at once."""
        with contextlib.suppress(asyncpg.InterfaceError):
            self.connection.terminate()


class _Session(msgspec.Struct, frozen=True):
    """A connection in a transaction, and how it goes back to where it came from."""

    connection: "AnyConnection"
    transaction: "Transaction"
    let_go: Callable[[], Awaitable[None]]


class _Statements(msgspec.Struct, frozen=True):
    """What a transaction ends with. They name the namespace: the search path is the role's own, for the user's SQL."""

    commit_runs: str
    write_checkpoints: str

    @classmethod
    def of(cls, namespace: str) -> "_Statements":
        return cls(statement_in(namespace, "commit_runs"), statement_in(namespace, "write_checkpoints"))


class Transactions:
    """Transactions of several statements: handlers', on connections of their own, and commits without their SQL.

    What a handler does to its connection stays there: no other statement ever runs on it.
    """

    def __init__(self, connections: Connections, fence_of: FenceOf, counters: StorageCounters) -> None:
        self._connections = connections
        self._database = connections.database
        self._statements = _Statements.of(connections.database.namespace)
        self._fence_of = fence_of
        self._counters = counters
        self._pool: TransactionPool | None = None
        self._making = asyncio.Lock()
        self._checked_by = self._database.check
        self._alone = asyncio.Semaphore(connections.most_transactions)
        """More would be in the way of the other statements."""
        self._closed = False

    async def begin(self) -> "PostgresTransaction":
        """Return a transaction that was begun, for a handler.

        Raises:
            PersistenceError: Postgres cannot be reached, or all connections stay busy for `BEGIN_LIMIT`.
        """
        connection = None
        pool = await self._ready()
        try:
            connection = await self._take(pool)
            if self._closed:
                raise PersistenceError("the storage is closed")
            outer = connection.transaction(isolation="read_committed")
            async with deadline(_Ending(connection), BEGIN_LIMIT):
                await outer.start()
                if self._database.mode is PoolMode.TRANSACTION:
                    await connection.execute(f"{set_all(self._settings(), local=True)}; {self._database.check}")
        except FOREIGN_ERRORS as exc:
            await _let_go(pool, connection)
            if isinstance(exc, TimeoutError) and connection is None and pool.get_size():
                raise PersistenceError(
                    f"cannot begin a transaction: all {pool.get_size()} connections that this process has for them "
                    f"were busy for {BEGIN_LIMIT.total_seconds():.0f} seconds: raise --max-connections"
                ) from exc
            raise translate(exc, "begin a transaction") from exc
        except BaseException:
            await _let_go(pool, connection)
            raise
        session = _Session(connection, outer, functools.partial(_let_go, pool, connection))
        return PostgresTransaction(session, self._statements, self._fence_of, self._counters)

    async def commit_alone(self, run: RunCommit, incarnation: str) -> bool:
        """Commit a run that has no SQL of a handler's, in a transaction of several statements.

        Raises:
            PersistenceError: as `PostgresTransaction.commit`, or none could be begun.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(BEGIN_LIMIT.total_seconds()):
                    await stack.enter_async_context(self._alone)
                    line = await stack.enter_async_context(self._connections.line())
                    async with deadline(line.connection, BEGIN_LIMIT):
                        transaction = await line.transaction()
            except FOREIGN_ERRORS as exc:
                raise translate(exc, "begin a transaction") from exc
            session = _Session(line.connection, transaction, _nothing)
            committing = PostgresTransaction(session, self._statements, self._fence_of, self._counters)
            try:
                return await committing.commit(run, incarnation)
            finally:
                await committing.roll_back()

    async def aclose(self) -> None:
        """End every connection; transactions under way fail."""
        self._closed = True
        if self._pool is not None:
            self._pool.terminate()

    async def _ready(self) -> "TransactionPool":
        async with self._making:
            if self._closed:
                raise PersistenceError("the storage is closed")
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    min_size=0,
                    max_size=self._connections.most_transactions,
                    connect=self._connect,
                    reset=self._reset,
                    max_inactive_connection_lifetime=IDLE_LIMIT,
                )
            if self._checked_by != self._database.check:
                # What is in the pool leads to a former run of the server.
                self._checked_by = self._database.check
                await self._pool.expire_connections()
            return self._pool

    async def _take(self, pool: "TransactionPool") -> "PooledConnection":
        loop = asyncio.get_running_loop()
        end = loop.time() + BEGIN_LIMIT.total_seconds()
        while True:
            try:
                # With a timeout it is acquired in a task of its own. A handler that is terminated while it waits takes
                # no further step, and would leave the place of its connection behind.
                return await pool.acquire(timeout=end - loop.time())
            except FOREIGN_ERRORS as exc:
                if not limit_met(exc):
                    raise
                self._connections.give_way(exc)
            await asyncio.sleep(_FULL_PAUSE)

    async def _connect(self, *_: object, **__: object) -> Connection:
        return await self._connections.connect_for_transactions("actorhub transaction", self._settings())

    async def _reset(self, connection: Connection) -> None:
        # The next handler gets what a new connection has.
        match self._database.mode:
            case PoolMode.DIRECT:
                await connection.execute(connection.get_reset_query())
            case PoolMode.SESSION:
                await connection.execute(f"{connection.get_reset_query()}\n{set_all(self._settings())}")
            case PoolMode.TRANSACTION:
                pass  # the session is the pooler's

    def _settings(self) -> Mapping[str, str]:
        return self._database.settings(_SETTINGS, in_namespace=False)


async def _nothing() -> None:
    """Whoever took the line gives it back."""


class PostgresTransaction(RunTransaction):
    """A `RunTransaction` on a connection that nobody else has until it is committed or rolled back."""

    def __init__(
        self,
        session: _Session,
        statements: _Statements,
        fence_of: FenceOf,
        counters: StorageCounters,
    ) -> None:
        self._let_go = session.let_go
        self._connection = session.connection
        self._outer = session.transaction
        self._statements = statements
        self._fence_of = fence_of
        self._counters = counters
        self._position: int | None = None
        """How far the log had come when the run was written."""
        self._ended = False

    @property
    @override
    def connection(self) -> "AnyConnection":
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
        except DuplicateKey:
            self._counters.refused += 1
            raise
        except BaseException as exc:
            await self.roll_back()
            if not isinstance(exc, FOREIGN_ERRORS):
                raise
            self._counters.failed += 1
            raise _failure(exc) from exc
        await self.roll_back()
        self._counters.acknowledge(self._position)
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
            await self._let_go()

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
            row = await self._connection.fetchrow(self._statements.commit_runs, *arguments)
        assert row is not None
        verdicts, self._position = row
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


async def _let_go(pool: "TransactionPool", connection: "PooledConnection | None") -> None:
    """Give the connection back; end it where that takes too long."""
    if connection is None:
        return
    try:
        async with deadline(_Ending(connection), UNDO_LIMIT):
            # The pool resets the session, and who still holds the connection cannot use it afterwards.
            await pool.release(connection, timeout=UNDO_LIMIT.total_seconds())
    except FOREIGN_ERRORS:
        return
