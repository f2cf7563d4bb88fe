"""The connections that all statements of a process share, and the bound on their number."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg
import msgspec

from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.storage.postgres.connection import Connection, Database, PoolMode, begin, close, deadline, set_all
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, limit_met, refused_connection, spoils_connection
from actorhub.storage.postgres.pool_mode import check_settings
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

_log: Final = get_logger(__name__)

NEEDED: Final = 3
"""Connections without which nothing is sure to go on: one for what may take long, one for what may not, and one for a
handler's transaction."""
IDLE_LIMIT: Final = 10.0
"""Seconds after which a connection beyond those that are kept is ended."""
_WAIT_LIMIT: Final = 10.0
_WARM_LIMIT: Final = timedelta(seconds=20)
_FULL_PAUSE: Final = 5.0
"""Seconds until a server that was full is asked again for a further connection."""
_WARNING_PAUSE: Final = 60.0
_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
_SETTINGS: Final = {"statement_timeout": "6s", "lock_timeout": "5s"}


class Statement(Protocol):
    """A statement on one connection."""

    async def fetch(self, *args: object) -> Sequence[asyncpg.Record]:
        """Run it, in a transaction of its own, and return its rows."""
        ...


class Line:
    """A connection in the namespace, and what is prepared on it."""

    def __init__(self, connection: Connection, database: Database) -> None:
        self.connection = connection
        self.idle_since = 0.0
        self._database = database
        self._prepared: dict[str, Statement] = {}

    async def statement(self, sql: str, settings: Mapping[str, str] = _NO_SETTINGS) -> Statement:
        """Return the statement, prepared.

        Args:
            sql: Its text.
            settings: Those that only this statement has. They cost two round trips.
        """
        if self._database.mode is PoolMode.TRANSACTION:
            settings = self._database.settings({**_SETTINGS, **settings})
            checked = f"{begin(settings)}; {self._database.check}"
            return _InTransaction(self.connection, checked, lambda *args: self.connection.fetch(sql, *args))
        statement = self._prepared.get(sql)
        if statement is None:
            self._prepared[sql] = statement = await self.connection.prepare(sql)
        return _InTransaction(self.connection, begin(settings), statement.fetch) if settings else statement

    async def transaction(self) -> "Transaction":
        """Begin a transaction of several statements, and return it."""
        transaction = self.connection.transaction(isolation="read_committed")
        await transaction.start()
        if self._database.mode is PoolMode.TRANSACTION:
            settings = set_all(self._database.settings(_SETTINGS), local=True)
            await self.connection.execute(f"{settings}; {self._database.check}")
        return transaction


class _InTransaction(msgspec.Struct, frozen=True):
    """A statement with settings of its own, or one that must bring all of its settings along."""

    connection: Connection
    begin: str
    run: Callable[..., Coroutine[Any, Any, Sequence[asyncpg.Record]]]

    async def fetch(self, *args: object) -> Sequence[asyncpg.Record]:
        await self.connection.execute(self.begin)
        try:
            rows = await self.run(*args)
        except asyncpg.PostgresError:
            await self.connection.execute("rollback")
            raise
        await self.connection.execute("commit")
        return rows


class _Waiter(msgspec.Struct, eq=False):
    slow: bool
    future: Future[Line]


class Connections:
    """At most `most` connections to one database: lines for statements, and those that handlers have transactions on.

    Who waits for a line is served in order. Statements that may take long (`slow`) have a share of the lines, so that
    the others never wait for them alone. Handlers' transactions may have all but `NEEDED` connections: a handler waits
    for statements while it has one, and statements wait for no handler, so that they can never wait for each other.
    Lines that are in the way of a transaction are ended as they become free.

    A server that is full, for this role or altogether, is lived with: the lines that there are take turns.

    All state is in the attributes below. `_serve` moves it, and starts what has to be made or ended.
    """

    def __init__(self, database: Database, clock: Clock, *, most: int, kept: int, counters: StorageCounters) -> None:
        self.most_transactions = max(1, most - NEEDED)
        self.database = database
        self._clock = clock
        self._most = most
        self._kept = min(kept, most)
        self._most_slow = max(1, (most - 1) // 4)
        self._counters = counters
        self._for_transactions: list[Connection] = []
        self._warm: tuple[str, ...] = ()
        self._lines: set[Line] = set()
        self._idle: deque[Line] = deque()
        """The one that was used last is the last."""
        self._waiting: deque[_Waiter] = deque()
        self._places: deque[Future[None]] = deque()
        """Who waits for room for a transaction's connection."""
        self._count = 0
        """Lines, those that are being made or ended included."""
        self._opening = self._ending = self._connecting = self._slow = self._lost = 0
        self._full_until = self._warn_from = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    async def open(self, warm: Sequence[str] = ()) -> None:
        """Make the lines that are kept, side by side.

        Args:
            warm: Names of the queries that each line prepares before it is used.

        Raises:
            ConfigurationError: they cannot be had; names the limit that is met, and what to do.
        """
        self._warm, self._closed = tuple(warm), False
        making = [asyncio.Task(self._make(warm=True), context=Context()) for _ in range(self._kept)]
        try:
            await asyncio.wait(making)
        finally:
            for task in making:
                task.cancel()
        made = [task.result() for task in making if task.exception() is None]
        self._lines.update(made)
        self._idle.extend(made)
        self._count += len(made)
        if failures := [error for task in making if (error := task.exception()) is not None]:
            await self.aclose()
            if not isinstance(failures[0], FOREIGN_ERRORS):
                raise failures[0]
            wanted = f"{self._kept} connections" if self._kept > 1 else ""
            raise refused_connection(failures[0], self.database.place, wanted) from failures[0]

    async def aclose(self) -> None:
        """End every line; statements under way fail."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for task in self._tasks:
            task.cancel()
        futures: list[Future[Any]] = [*(waiter.future for waiter in self._waiting), *self._places]
        for future in futures:
            if not future.done():
                future.set_exception(PersistenceError("the storage is closed"))
        idle = set(self._idle)
        self._idle.clear()
        for line in self._lines - idle:
            line.connection.terminate()
        async with asyncio.TaskGroup() as tasks:
            for line in idle:
                tasks.create_task(close(line.connection))
        self._lines -= idle
        self._count -= len(idle)

    @asynccontextmanager
    async def line(self, *, slow: bool = False) -> AsyncGenerator[Line]:
        """A line that nobody else uses meanwhile.

        Args:
            slow: Whether it is for something that may take long.

        Raises:
            FOREIGN_ERRORS: none can be made, or none became free.
            PersistenceError: the storage is closed.
        """
        line = await self._acquire(slow=slow)
        try:
            yield line
        except FOREIGN_ERRORS as exc:
            if spoils_connection(exc):
                line.connection.terminate()
            raise
        finally:
            self._slow -= slow
            self._put_back(line)

    async def connect_for_transactions(self, name: str, settings: Mapping[str, str]) -> Connection:
        """Return a new connection that counts until it is closed, once there is room for it.

        Raises:
            FOREIGN_ERRORS: it cannot be made.
            PersistenceError: the storage is closed.
        """
        if self._closed:
            raise PersistenceError("the storage is closed")
        place: Future[None] = asyncio.get_running_loop().create_future()
        self._places.append(place)
        self._serve()
        try:
            await place
            connection = await self.database.connect(name, settings)
            self._for_transactions.append(connection)
            return connection
        finally:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._connecting -= 1
                self._serve()

    def renew(self) -> None:
        """End every connection, so that nothing goes on over one to a former run of the server."""
        for connection in [*(line.connection for line in self._lines), *self._for_transactions]:
            connection.terminate()
        self._serve()

    def give_way(self, refused: BaseException) -> None:
        """End a line that is not needed, because a server that is full refused a connection for something else."""
        self._live_with_limit(refused)
        if self._idle and self._count - self._ending >= NEEDED:
            self._end(self._idle.popleft())

    async def _acquire(self, *, slow: bool) -> Line:
        if self._closed:
            raise PersistenceError("the storage is closed")
        waiter = _Waiter(slow, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._serve()
        try:
            async with asyncio.timeout(_WAIT_LIMIT):
                return await waiter.future
        except BaseException as exc:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                # Served, and cancelled before it could take what it got.
                self._slow -= slow
                self._put_back(waiter.future.result())
            if isinstance(exc, TimeoutError):
                raise TimeoutError(
                    f"all {self._count} connections of this process were busy for {_WAIT_LIMIT:.0f} seconds"
                ) from exc
            raise

    def _put_back(self, line: Line) -> None:
        if self._closed or line.connection.is_closed() or line.connection.is_in_transaction():
            line.connection.terminate()
            self._forget(line)
        else:
            line.idle_since = self._clock.monotonic()
            self._idle.append(line)
        self._serve()

    def _forget(self, line: Line) -> None:
        self._lines.discard(line)
        self._count -= 1
        self._lost += 1

    def _serve(self) -> None:
        """Give away what is free; have made what is missing, and ended what is in the way."""
        if self._closed:
            return
        for line in [line for line in self._idle if line.connection.is_closed()]:
            self._idle.remove(line)
            self._forget(line)
        # Of those that were cancelled, nobody knows yet.
        self._places = deque(future for future in self._places if not future.done())
        while self._places and self._room() > 0:
            self._connecting += 1
            self._places.popleft().set_result(None)
        while self._idle and len(self._places) > self._ending:
            self._end(self._idle.popleft())
        while self._idle and (waiter := self._next_waiter()) is not None:
            self._slow += waiter.slow
            waiter.future.set_result(self._idle.pop())
        if self._clock.monotonic() >= self._full_until:
            slow = sum(waiter.slow for waiter in self._waiting)
            wanted = len(self._waiting) - slow + min(slow, self._most_slow - self._slow)
            while wanted > self._opening and self._room() > 0:
                self._opening += 1
                self._count += 1
                self._start(self._open())
        if self._reaper is None and self._count > self._kept:
            loop = asyncio.get_running_loop()
            self._reaper = loop.call_later(IDLE_LIMIT / 2, self._reap, context=Context())

    def _room(self) -> int:
        self._for_transactions = [each for each in self._for_transactions if not each.is_closed()]
        return self._most - self._count - len(self._for_transactions) - self._connecting

    def _next_waiter(self) -> _Waiter | None:
        for waiter in self._waiting:
            if not waiter.future.done() and (not waiter.slow or self._slow < self._most_slow):
                self._waiting.remove(waiter)
                return waiter
        return None

    def _reap(self) -> None:
        self._reaper = None
        now = self._clock.monotonic()
        while self._idle and self._count - self._ending > self._kept and now - self._idle[0].idle_since >= IDLE_LIMIT:
            self._end(self._idle.popleft())
        self._serve()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.Task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, line: Line) -> None:
        self._ending += 1
        self._start(self._close(line))

    async def _close(self, line: Line) -> None:
        try:
            await close(line.connection)
        finally:
            line.connection.terminate()
            self._lines.discard(line)
            self._count -= 1
            self._ending -= 1
            self._serve()

    async def _open(self) -> None:
        line = None
        try:
            # Where others serve meanwhile, it comes with everything prepared.
            line = await self._make(warm=self._count > self._opening)
        except Exception as exc:  # noqa: BLE001 - supervised loop: whatever it is, it fails one request
            self._on_refused(exc)
        finally:
            self._opening -= 1
            self._count -= line is None
        if line is not None:
            self._counters.reconnects += self._lost > 0
            self._lost = max(0, self._lost - 1)
            self._lines.add(line)
            line.idle_since = self._clock.monotonic()
            self._idle.append(line)
        self._serve()

    def _on_refused(self, error: Exception) -> None:
        if limit_met(error) and self._count > self._opening:
            self._live_with_limit(error)
        elif (waiter := self._next_waiter()) is not None:
            waiter.future.set_exception(error)

    def _live_with_limit(self, error: BaseException) -> None:
        """Ask for no further line for a while."""
        now = self._clock.monotonic()
        if now >= self._full_until:
            asyncio.get_running_loop().call_later(_FULL_PAUSE, self._serve, context=Context())
        if now >= self._warn_from:
            self._warn_from = now + _WARNING_PAUSE
            explained = refused_connection(error, self.database.place, "a further connection")
            _log.warning("%s: this process goes on with %d", explained, self._count - self._opening)
        self._full_until = now + _FULL_PAUSE

    async def _make(self, *, warm: bool) -> Line:
        database = self.database
        line = Line(await database.connect("actorhub work", database.settings(_SETTINGS)), database)
        if database.mode is PoolMode.DIRECT and not warm:
            return line
        try:
            async with deadline(line.connection, _WARM_LIMIT):
                if database.mode is PoolMode.SESSION:
                    await check_settings(line.connection, database)
                if warm and database.mode is not PoolMode.TRANSACTION:
                    for name in self._warm:
                        await line.statement(queries()[name])
                    # asyncpg prepares without an end: locks and snapshot would be kept until the next statement.
                    await line.connection.execute("select")
        except BaseException:
            line.connection.terminate()
            raise
        return line
