"""Durable messages on Postgres."""

import asyncio
from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import asyncpg
from typing_extensions import override

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, DuplicateKey
from actorhub.storage.message_ports import (
    CancelResult,
    KeyUse,
    MessageFilter,
    MessageKey,
    MessageRow,
    MessageState,
    MessageStore,
    NewMessage,
    PendingMessage,
    Readiness,
    RolledBack,
    RunCommit,
    RunFailure,
    RunStart,
    Stored,
)
from actorhub.storage.postgres.batcher import Batcher
from actorhub.storage.postgres.batching import MAX_BATCH_BYTES
from actorhub.storage.postgres.connections import Connections
from actorhub.storage.postgres.control import LONG, Lane
from actorhub.storage.postgres.errors import Cause, cause
from actorhub.storage.postgres.message_batches import (
    CommitBatches,
    FailureBatches,
    FenceOf,
    StartBatches,
    StoreBatches,
)
from actorhub.storage.postgres.message_requests import (
    ROW_BYTES,
    deduplicated,
    key_hash,
    message_key,
    new_bytes,
    run_bytes,
    run_key,
)
from actorhub.storage.postgres.message_rows import listed_row, message_row, pending_message, shard_of
from actorhub.storage.postgres.transaction import PostgresTransaction, Transactions
from actorhub.storage.statistics import StorageCounters

_PURGE_STEP: Final = 500
_COMMIT_ATTEMPTS: Final = 3
"""Of a commit that met another one of the same key or state, or a deadlock."""
_INDEXES_ONLY: Final = {
    **LONG,
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""What is loaded is a small part of the table, whatever its statistics say."""


class PostgresMessages(MessageStore):
    """A `MessageStore` in the namespace's schema."""

    def __init__(self, connections: Connections, clock: Clock, counters: StorageCounters, fence_of: FenceOf) -> None:
        # Loading must not queue behind what people ask for.
        self._loads = Lane(connections, _INDEXES_ONLY)
        self._control = Lane(connections, LONG, slow=True)
        self._uncounts = Lane(connections)
        self._transactions = Transactions(connections, fence_of, counters)
        self._stores = Batcher(connections, clock, StoreBatches("store messages", fence_of, counters), counters)
        self._deposits = Batcher(connections, clock, StoreBatches("deposit messages", fence_of, counters), counters)
        self._starts = Batcher(connections, clock, StartBatches(fence_of, counters), counters)
        self._commits = Batcher(connections, clock, CommitBatches(fence_of, counters), counters)
        self._failures = Batcher(connections, clock, FailureBatches(fence_of, counters), counters)
        self._fence_of = fence_of

    @property
    def pending(self) -> int:
        """How many batched requests have no result yet."""
        batchers = (self._stores, self._deposits, self._starts, self._commits, self._failures)
        return sum(batcher.pending for batcher in batchers)

    def give_up(self, error: ActorhubError) -> None:
        """Fail the batched requests that have no result yet."""
        for batcher in (self._stores, self._deposits, self._starts, self._commits, self._failures):
            batcher.give_up(error)

    async def aclose(self) -> None:
        """Take no more requests, after at most a few seconds for those that wait. Can be called twice."""
        async with asyncio.TaskGroup() as tasks:
            for batcher in (self._stores, self._deposits, self._starts, self._commits, self._failures):
                tasks.create_task(batcher.aclose())
            tasks.create_task(self._transactions.aclose())

    @override
    def store(self, message: NewMessage, incarnation: str) -> Future[Stored]:
        return self._stores.submit_nowait(message, message_key(message), incarnation, new_bytes(message))

    @override
    def deposit(self, message: NewMessage) -> Future[Stored]:
        return self._deposits.submit_nowait(message, message_key(message), "", new_bytes(message))

    @override
    def start_run(self, start: RunStart, incarnation: str) -> Future[Readiness]:
        return self._starts.submit_nowait(start, ("", str(start.message_id)), incarnation, ROW_BYTES)

    @override
    async def uncount_runs(self, starts: Sequence[RunStart], incarnation: str) -> None:
        owned: dict[tuple[ShardId, int], dict[int, int]] = {}
        for start in starts:
            owned.setdefault((start.shard, start.epoch), {})[start.message_id] = start.attempts
        for (shard, epoch), attempts in owned.items():
            owner = (self._fence_of(incarnation), incarnation, shard.group, shard.number, epoch)
            columns = (list(attempts), list(attempts.values()))
            held = await self._uncounts.fetch("uncount runs", "uncount_runs", *owner, *columns)
            # One at a time: commit_runs counts next runs in no order, so whoever waits for several could deadlock.
            for (message_id,) in held:
                await self._uncounts.fetch("uncount a run", "uncount_run", *owner, message_id, attempts[message_id])

    @override
    def commit_run(self, run: RunCommit, incarnation: str) -> Future[bool]:
        if run.outbox:
            try:
                run = deduplicated(run)
            except DuplicateKey as exc:
                future: Future[bool] = asyncio.get_running_loop().create_future()
                future.set_exception(exc)
                return future
        return self._commits.submit_nowait(run, run_key(run), incarnation, run_bytes(run))

    @override
    async def commit_with_checkpoints(self, run: RunCommit, incarnation: str) -> bool:
        attempt = 1
        while True:
            try:
                return await self._transactions.commit_alone(run, incarnation)
            except RolledBack as exc:
                # A twin of this commit, or another sender with the same key, was committed between what commit_runs
                # read and what it wrote. The next attempt reads what that one wrote, and says what it means.
                if attempt == _COMMIT_ATTEMPTS or cause(exc.__cause__ or exc) is not Cause.TRANSIENT:
                    raise
                attempt += 1

    @override
    def fail_run(self, failure: RunFailure, incarnation: str) -> Future[float]:
        size = ROW_BYTES + len(failure.error) + len(failure.traceback)
        return self._failures.submit_nowait(failure, ("", str(failure.message_id)), incarnation, size)

    @override
    async def load_backlog(
        self, places: Mapping[ShardId, tuple[str, str]], entities: int, per_entity: int
    ) -> tuple[Sequence[PendingMessage], frozenset[ShardId]]:
        if not places:
            return [], frozenset()
        shards, cursors = list(places), list(places.values())
        rows = await self._loads.fetch(
            "load messages",
            "load_backlog",
            *_shard_columns(shards),
            [entity_type for entity_type, _ in cursors],
            [entity_id for _, entity_id in cursors],
            entities,
            per_entity,
            MAX_BATCH_BYTES,
        )
        await self._mend(rows)
        found: list[PendingMessage] = []
        # An entity without bodies was left out for its size, or is the one too many that shows that there are more.
        more: set[ShardId] = set()
        for row in rows:
            place: int = row["place"]
            shard = shards[place - 1]
            if row["body"] is None:
                more.add(shard)
            else:
                found.append(pending_message(row, shard))
        return found, frozenset(shards) - more

    @override
    async def load_entities(
        self, entities: Sequence[tuple[ShardId, str, str]], per_entity: int
    ) -> Sequence[PendingMessage]:
        if not entities:
            return []
        rows = await self._loads.fetch(
            "load messages",
            "load_entities",
            *_shard_columns([shard for shard, _, _ in entities]),
            [entity_type for _, entity_type, _ in entities],
            [entity_id for _, _, entity_id in entities],
            per_entity,
        )
        await self._mend(rows)
        places: list[int] = [row["place"] for row in rows]
        return [pending_message(row, entities[place - 1][0]) for place, row in zip(places, rows, strict=True)]

    @override
    async def load_scheduled(
        self, shards: Sequence[ShardId], until: float, limit: int
    ) -> tuple[Sequence[PendingMessage], float]:
        rows = await self._loads.fetch(
            "load scheduled messages", "load_scheduled", *_shard_columns(shards), until, limit
        )
        await self._mend(rows)
        return [pending_message(row, shard_of(row)) for row in rows if row["message_id"] is not None], rows[0]["clock"]

    @override
    async def strays(
        self, types: Collection[str], groups: Collection[str], after: tuple[ShardId, str, str] | None, limit: int
    ) -> Sequence[tuple[ShardId, str, str]]:
        cursor = ("", -1, "", "") if after is None else (after[0].group, after[0].number, *after[1:])
        rows = await self._loads.fetch(
            "find messages of unhosted groups", "strays", list(types), list(groups), limit, *cursor
        )
        return [(shard_of(row), row["entity_type"], row["entity_id"]) for row in rows]

    @override
    async def promote_due(self, message_ids: Sequence[int]) -> None:
        await self._loads.fetch("promote due messages", "promote_due", list(message_ids))

    @override
    async def find(self, message_id: int) -> MessageRow | None:
        rows = await self._control.fetch("find a message", "find", message_id)
        return message_row(rows[0]) if rows else None

    @override
    async def find_key(self, key: MessageKey) -> KeyUse | None:
        rows = await self._control.fetch("find a key", "find_key", key_hash(key))
        return KeyUse(**rows[0]) if rows else None

    @override
    async def cancelled_since(self, key: MessageKey, since: float) -> int:
        rows = await self._control.fetch("find a cancelled message", "cancelled_since", key_hash(key), since)
        return rows[0][0] if rows else 0

    @override
    async def cancel(
        self, message_id: int, shard: ShardId, epoch: int, *, incarnation: str | None, retention: float
    ) -> CancelResult:
        fence = None if incarnation is None else self._fence_of(incarnation)
        arguments = (fence, incarnation, message_id, shard.group, shard.number, epoch, retention)
        rows = await self._control.fetch("cancel a message", "cancel", *arguments)
        return CancelResult(rows[0][0])

    @override
    async def retry(self, message_ids: Sequence[int]) -> Sequence[PendingMessage]:
        found: list[PendingMessage] = []
        # One at a time: commit_runs counts next runs in no order, so whoever else locks several rows could deadlock.
        for message_id in sorted(set(message_ids)):
            rows = await self._control.fetch("retry a message", "retry", [message_id])
            found += [pending_message(row, shard_of(row)) for row in rows]
        return found

    @override
    async def messages(self, wanted: MessageFilter) -> Sequence[MessageRow]:
        states = [state.value for state in wanted.states] or None
        rows = await self._control.fetch(
            "list messages", "list_messages", states, *_conditions(wanted), wanted.after_id, wanted.limit
        )
        return [listed_row(row) for row in rows]

    @override
    async def purge(self, wanted: MessageFilter) -> int:
        if wanted.states and MessageState.DEAD not in wanted.states:
            return 0
        purged, last_id = 0, wanted.after_id
        while purged < wanted.limit:
            step = min(_PURGE_STEP, wanted.limit - purged)
            rows = await self._control.fetch("purge dead letters", "purge", *_conditions(wanted), last_id, step)
            count, found_last = rows[0]
            purged += count
            if count < step:
                break
            last_id = found_last
        return purged

    @override
    async def remove_expired(self, limit: int) -> int:
        rows = await self._control.fetch("remove expired replies", "remove_expired", limit)
        return int(rows[0][0])

    @override
    async def free_keys(self, keys: Sequence[MessageKey]) -> None:
        await self._control.fetch("free keys", "free_keys", [key_hash(key) for key in keys])

    @override
    async def begin(self) -> PostgresTransaction:
        return await self._transactions.begin()

    async def _mend(self, rows: Sequence[asyncpg.Record]) -> None:
        """Drop what a hand may have left of a history: a failed run, or a dead letter, could not be added to it."""
        if odd := [row["message_id"] for row in rows if row["odd"]]:
            await self._loads.fetch("drop histories", "drop_histories", odd)


def _shard_columns(shards: Sequence[ShardId]) -> tuple[list[str], list[int]]:
    return [shard.group for shard in shards], [shard.number for shard in shards]


def _conditions(wanted: MessageFilter) -> tuple[object, ...]:
    shard = None if wanted.shard is None else str(wanted.shard)
    return wanted.entity_type, wanted.entity_id, wanted.handler, shard, wanted.key, wanted.older_than
