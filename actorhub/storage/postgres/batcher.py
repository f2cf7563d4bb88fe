"""Requests that share round trips."""

import asyncio
from asyncio import Future
from collections.abc import Sequence
from contextvars import Context
from datetime import timedelta
from typing import Final, Generic, Protocol

from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.storage.postgres.batching import Again, Entry, Outage, RequestT, ResultT, Waiting
from actorhub.storage.postgres.connection import deadline
from actorhub.storage.postgres.connections import Connections, Line, Statement
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, Cause, cause, summary, translate
from actorhub.storage.statistics import StorageCounters

_log: Final = get_logger(__name__)

BATCH_LIMIT: Final = timedelta(seconds=7)
"""A batch that has no answer after this long has lost its connection."""
CLOSE_LIMIT: Final = timedelta(seconds=2)


class BatchWork(Protocol[RequestT, ResultT]):
    """What a batcher does with a batch."""

    @property
    def name(self) -> str:
        """What it does, for messages: `commit state`."""
        ...

    @property
    def writes(self) -> bool:
        """Whether a failed request may have been carried out."""
        ...

    @property
    def sql(self) -> str:
        """The statement, prepared once per connection."""
        ...

    async def run(
        self, statement: Statement, batch: Sequence[Entry[RequestT, ResultT]]
    ) -> Sequence[ResultT | ActorhubError | Again]:
        """Return each entry's outcome, in order, not only `Again`. Running a batch twice is harmless."""
        ...


class Batcher(Generic[RequestT, ResultT]):
    """Gathers requests while a batch is in flight, then sends them as the next one; a lone request waits for nobody.

    A connection that is lost in the middle leaves the outcome of its batch open: the server may have committed it, or
    may be about to. So the batch is sent again over a new connection until an answer tells, or until `Outage.PATIENCE`
    has passed. That is why repeating must be harmless, and why two twins of one batch may meet in the server.

    It owns its task; one batch is in flight at a time, over any connection of the process.
    """

    def __init__(
        self, connections: Connections, clock: Clock, work: BatchWork[RequestT, ResultT], counters: StorageCounters
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._work = work
        self._counters = counters
        self._waiting: Waiting[RequestT, ResultT] = Waiting()
        self._batch: list[Entry[RequestT, ResultT]] = []
        self._outage = Outage()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def pending(self) -> int:
        """How many requests have no result yet."""
        return len(self._waiting) + len(self._batch)

    def submit_nowait(self, request: RequestT, key: tuple[str, str], owner: str, size: int) -> Future[ResultT]:
        """Queue a request; return the future of its result, failed already where there is no room."""
        future: Future[ResultT] = asyncio.get_running_loop().create_future()
        if self._closing:
            future.set_exception(PersistenceError(f"cannot {self._work.name}: the storage is closed"))
        elif not self._waiting.add_nowait(Entry(request, future, key, owner, size)):
            self._counters.failed += 1
            future.set_exception(
                PersistenceError(f"cannot {self._work.name}: {len(self._waiting)} requests wait already")
            )
        elif self._task is None:
            self._task = asyncio.Task(self._run(), name=f"actorhub {self._work.name}", context=Context())
        else:
            self._wake.set()
        return future

    def give_up(self, error: ActorhubError) -> None:
        """Fail what was asked and has no result yet."""
        self._fail([*self._batch, *self._waiting.drain()], error)

    async def aclose(self) -> None:
        """Finish what waits if that takes less than `CLOSE_LIMIT`, fail the rest."""
        self._closing = True
        self._wake.set()
        task, self._task = self._task, None
        try:
            if task is not None:
                await asyncio.wait([task], timeout=CLOSE_LIMIT.total_seconds())
        finally:
            if task is not None:
                task.cancel()
            self._fail([*self._batch, *self._waiting.drain()], ConnectionAbortedError("the storage was closed"))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._waiting:
                await self._attempt()
            elif self._closing:
                return
            else:
                await self._wake.wait()

    async def _attempt(self) -> None:
        try:
            async with self._connections.line() as line:
                # What was asked while it waited for a connection goes along.
                self._batch = self._waiting.next_batch()
                if self._batch:
                    await self._settle(line, self._batch)
            self._batch = []
            self._outage.ended()
        except FOREIGN_ERRORS as exc:
            await self._retry_later(exc)
        except Exception as exc:  # noqa: BLE001 - supervised loop: a defect fails one batch, the batcher goes on
            _log.exception("defect: cannot %s", self._work.name)
            self._fail(self._batch or self._waiting.drain(), exc)
            self._batch = []

    async def _settle(self, line: Line, batch: Sequence[Entry[RequestT, ResultT]]) -> None:
        try:
            async with deadline(line.connection, BATCH_LIMIT):
                outcomes = await self._work.run(await line.statement(self._work.sql), batch)
        except FOREIGN_ERRORS as exc:
            match cause(exc):
                case Cause.TRANSIENT:
                    raise
                # The data of one request broke the whole batch, and nothing says which. Halving finds it.
                case Cause.DATA if len(batch) > 1:
                    middle = len(batch) // 2
                    await self._settle(line, batch[:middle])
                    await self._settle(line, batch[middle:])
                case _:
                    self._fail(batch, exc)
            return
        again: list[Entry[RequestT, ResultT]] = []
        for entry, outcome in zip(batch, outcomes, strict=True):
            # Whoever cancelled while the batch was under way is not told; what it asked for happened nevertheless.
            if entry.future.done():
                continue
            if isinstance(outcome, ActorhubError):
                entry.future.set_exception(outcome)
            elif isinstance(outcome, Again):
                again.append(entry)
            else:
                entry.future.set_result(outcome)
        self._waiting.give_back(again)

    async def _retry_later(self, error: BaseException) -> None:
        now = self._clock.monotonic()
        pause = self._outage.failed(now, self._clock.random())
        if self._outage.too_long(now):
            self._fail([*self._batch, *self._waiting.drain()], error)
        else:
            _log.warning("cannot %s, will repeat %d: %s", self._work.name, len(self._batch), summary(error))
            self._waiting.give_back(self._batch)
        self._batch = []
        await asyncio.sleep(pause)

    def _fail(self, entries: Sequence[Entry[RequestT, ResultT]], error: BaseException) -> None:
        for entry in entries:
            if not entry.future.done():
                self._counters.failed += 1
                failure = translate(error, self._work.name)
                failure.possibly_executed = self._work.writes
                failure.__cause__ = error
                entry.future.set_exception(failure)
