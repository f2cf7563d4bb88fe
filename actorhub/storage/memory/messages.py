"""One process's access to the durable messages of a memory store."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from typing_extensions import override

from actorhub.core.address import ShardId
from actorhub.core.errors import ConfigurationError, DuplicateKey, PersistenceError
from actorhub.storage.memory.message_table import MessageTable
from actorhub.storage.message_ports import (
    CancelResult,
    KeyUse,
    MessageFilter,
    MessageKey,
    MessageRow,
    MessageStore,
    NewMessage,
    NotPending,
    PendingMessage,
    Readiness,
    RunCommit,
    RunFailure,
    RunStart,
    RunTransaction,
    Stored,
    Verdict,
)
from actorhub.storage.ports import Fenced, VersionConflict
from actorhub.storage.statistics import StorageCounters

ResultT = TypeVar("ResultT")


class MemoryMessages(MessageStore):
    """A `MessageStore` on a memory store.

    What is queued in one step of the loop is carried out together in the next, in order.

    Args:
        table: The server's side.
        counters: Where what is done is counted.
        check_open: Raises `PersistenceError` while nothing can be done.
        on_written: Told of each write.
    """

    def __init__(
        self,
        table: MessageTable,
        counters: StorageCounters,
        check_open: Callable[[], None],
        on_written: Callable[[], None],
    ) -> None:
        self._table = table
        self._counters = counters
        self._check_open = check_open
        self._on_written = on_written
        self._waiting: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @override
    def store(self, message: NewMessage, incarnation: str) -> Future[Stored]:
        return self._queue(lambda: self._store(message, incarnation))

    @override
    def deposit(self, message: NewMessage) -> Future[Stored]:
        return self._queue(lambda: self._store(message, None))

    @override
    def start_run(self, start: RunStart, incarnation: str) -> Future[Readiness]:
        return self._queue(lambda: self._start(start, incarnation), writes=False)

    @override
    async def uncount_runs(self, starts: Sequence[RunStart], incarnation: str) -> None:
        (await self._reached()).uncount_runs(starts, incarnation)

    @override
    def commit_run(self, run: RunCommit, incarnation: str) -> Future[bool]:
        return self._queue(lambda: self._commit(run, incarnation))

    @override
    async def commit_with_checkpoints(self, run: RunCommit, incarnation: str) -> bool:
        table = await self._reached()
        try:
            counted = table.commit_with_checkpoints(run, incarnation)
        except (Fenced, VersionConflict, NotPending, DuplicateKey):
            self._counters.refused += 1
            raise
        self._on_written()
        self._counters.settled += 1
        self._counters.started += counted
        return counted

    @override
    def fail_run(self, failure: RunFailure, incarnation: str) -> Future[float]:
        return self._queue(lambda: self._fail(failure, incarnation))

    @override
    async def load_backlog(
        self, places: Mapping[ShardId, tuple[str, str]], entities: int, per_entity: int
    ) -> tuple[Sequence[PendingMessage], frozenset[ShardId]]:
        return (await self._reached()).load_backlog(places, entities, per_entity)

    @override
    async def load_entities(
        self, entities: Sequence[tuple[ShardId, str, str]], per_entity: int
    ) -> Sequence[PendingMessage]:
        return (await self._reached()).load_entities(entities, per_entity)

    @override
    async def load_scheduled(
        self, shards: Sequence[ShardId], until: float, limit: int
    ) -> tuple[Sequence[PendingMessage], float]:
        return (await self._reached()).load_scheduled(shards, until, limit)

    @override
    async def strays(
        self, types: Collection[str], groups: Collection[str], after: tuple[ShardId, str, str] | None, limit: int
    ) -> Sequence[tuple[ShardId, str, str]]:
        return (await self._reached()).strays(types, groups, after, limit)

    @override
    async def promote_due(self, message_ids: Sequence[int]) -> None:
        (await self._reached()).promote_due(message_ids)

    @override
    async def find(self, message_id: int) -> MessageRow | None:
        return (await self._reached()).find(message_id)

    @override
    async def find_key(self, key: MessageKey) -> KeyUse | None:
        return (await self._reached()).find_key(key)

    @override
    async def cancelled_since(self, key: MessageKey, since: float) -> int:
        return (await self._reached()).cancelled_since(key, since)

    @override
    async def cancel(
        self, message_id: int, shard: ShardId, epoch: int, *, incarnation: str | None, retention: float
    ) -> CancelResult:
        return (await self._reached()).cancel(message_id, shard, epoch, incarnation=incarnation, retention=retention)

    @override
    async def retry(self, message_ids: Sequence[int]) -> Sequence[PendingMessage]:
        return (await self._reached()).retry(message_ids)

    @override
    async def messages(self, wanted: MessageFilter) -> Sequence[MessageRow]:
        return (await self._reached()).messages(wanted)

    @override
    async def purge(self, wanted: MessageFilter) -> int:
        return (await self._reached()).purge(wanted)

    @override
    async def remove_expired(self, limit: int) -> int:
        return (await self._reached()).remove_expired(limit)

    @override
    async def free_keys(self, keys: Sequence[MessageKey]) -> None:
        (await self._reached()).free_keys(keys)

    @override
    async def begin(self) -> RunTransaction:
        raise ConfigurationError("transaction() needs Postgres: this hub keeps everything in memory, which has no SQL")

    def flush(self) -> None:
        """Carry out what waits."""
        batch, self._waiting = self._waiting, []
        if batch:
            self._counters.message_batches += 1
        for carry_out in batch:
            carry_out()

    async def _reached(self) -> MessageTable:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._table

    def _store(self, message: NewMessage, incarnation: str | None) -> Stored:
        answer = self._table.store(message, incarnation)
        self._counters.stored += answer.verdict is Verdict.NEW
        return answer

    def _start(self, start: RunStart, incarnation: str) -> Readiness:
        readiness = self._table.start_run(start, incarnation)
        self._counters.started += readiness is Readiness.RUN
        return readiness

    def _commit(self, run: RunCommit, incarnation: str) -> bool:
        counted = self._table.commit_run(run, incarnation)
        self._counters.settled += 1
        self._counters.started += counted
        return counted

    def _fail(self, failure: RunFailure, incarnation: str) -> float:
        due = self._table.fail_run(failure, incarnation)
        self._counters.failed_runs += 1
        return due

    def _queue(self, work: Callable[[], ResultT], *, writes: bool = True) -> Future[ResultT]:
        loop = asyncio.get_running_loop()
        future: Future[ResultT] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self.flush)
        self._waiting.append(lambda: self._carry_out(work, future, writes=writes))
        return future

    def _carry_out(self, work: Callable[[], ResultT], future: Future[ResultT], *, writes: bool) -> None:
        if future.done():
            return
        try:
            self._check_open()
            result = work()
        except (Fenced, VersionConflict, NotPending, DuplicateKey) as exc:
            self._counters.refused += 1
            future.set_exception(exc)
        except PersistenceError as exc:
            exc.possibly_executed = writes
            self._counters.failed += 1
            future.set_exception(exc)
        else:
            if writes:
                self._on_written()
            future.set_result(result)
