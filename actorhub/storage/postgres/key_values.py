"""The key-value store on Postgres."""

import itertools
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import asyncpg
from typing_extensions import override

from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.storage.key_value_ports import ClearStep, KeyValueStore, StoredValue
from actorhub.storage.postgres.batcher import Batcher
from actorhub.storage.postgres.batching import MAX_BATCH_BYTES, MAX_WAITING, MAX_WAITING_BYTES, Again, Entry
from actorhub.storage.postgres.connections import Connections, Statement
from actorhub.storage.postgres.control import LONG, Lane
from actorhub.storage.postgres.errors import Cause, cause
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

WRITERS: Final = 4
"""Writes at a time, one for each of as many sets of keys."""

GetEntry: TypeAlias = Entry[str, StoredValue | None]


class ValueReads:
    """Reads the values of a batch in one statement."""

    name = "read values"
    writes = False

    def __init__(self) -> None:
        self.sql = queries()["get_values"]

    async def run(self, statement: Statement, batch: Sequence[GetEntry]) -> Sequence[StoredValue | Again | None]:
        """Return the value of each key."""
        rows = await statement.fetch([entry.request for entry in batch], MAX_BATCH_BYTES)
        found: list[StoredValue | Again | None] = [None] * len(batch)
        for position, data, ttl in rows:
            found[position] = Again() if data is None else StoredValue(data, ttl)
        return found


class PostgresKeyValues(KeyValueStore):
    """A `KeyValueStore` in the namespace's schema.

    Reads share round trips, and are repeated over a lost connection. A write is one statement that nobody repeats,
    because somebody else may have written meanwhile. Those of one key go one after the other, those of others beside
    them, `WRITERS` at a time.
    """

    def __init__(self, connections: Connections, clock: Clock, counters: StorageCounters) -> None:
        self._reads = Batcher(connections, clock, ValueReads(), counters)
        self._writers = [Lane(connections) for _ in range(WRITERS)]
        # Counting and clearing may take long.
        self._upkeep = Lane(connections, LONG, slow=True)
        self._read_number = itertools.count()
        self._writing = self._writing_bytes = 0

    @property
    def pending(self) -> int:
        """How many reads and writes have no result yet."""
        return self._reads.pending + self._writing

    async def aclose(self) -> None:
        """Take no more reads, after at most a few seconds for those that wait. Can be called twice."""
        await self._reads.aclose()

    @override
    async def get(self, key: str) -> StoredValue | None:
        # Reads of one key may share a batch, so each has a name of its own.
        return await self._reads.submit_nowait(key, ("", str(next(self._read_number))), "", len(key))

    @override
    async def put(self, key: str, data: bytes, ttl: float | None) -> None:
        await self._write("put_value", key, data, ttl)

    @override
    async def swap(self, key: str, expected: bytes | None, data: bytes | None, ttl: float | None) -> bool:
        if expected is None:
            if data is None:
                return await self.get(key) is None
            return bool(await self._write("make_value", key, data, ttl))
        if data is None:
            return bool(await self._write("remove_value", key, expected))
        return bool(await self._write("replace_value", key, expected, data))

    @override
    async def delete(self, key: str) -> bool:
        rows = await self._write("delete_value", key)
        return bool(rows and rows[0][0])

    @override
    async def count(self, prefix: str, limit: int | None) -> int:
        rows = await self._upkeep.fetch("count values", "count_values", _pattern(prefix), limit)
        return int(rows[0][0])

    @override
    async def clear(self, prefix: str, after: str, limit: int) -> ClearStep:
        with _outcome_known():
            rows = await self._upkeep.fetch("clear values", "clear_values", _pattern(prefix), after, limit)
        return ClearStep(*rows[0])

    @override
    async def remove_expired(self, limit: int) -> int:
        rows = await self._upkeep.fetch("remove expired values", "remove_expired_values", limit)
        return int(rows[0][0])

    async def _write(self, query: str, key: str, *arguments: bytes | float | None) -> Sequence[asyncpg.Record]:
        size = sum(len(argument) for argument in arguments if isinstance(argument, bytes))
        with self._room(size), _outcome_known():
            return await self._writers[hash(key) % WRITERS].fetch("write a value", query, key, *arguments)

    @contextmanager
    def _room(self, size: int) -> Generator[None]:
        if self._writing >= MAX_WAITING or (self._writing and self._writing_bytes + size > MAX_WAITING_BYTES):
            raise PersistenceError(f"cannot write a value: {self._writing} writes wait already")
        self._writing += 1
        self._writing_bytes += size
        try:
            yield
        finally:
            self._writing -= 1
            self._writing_bytes -= size


@contextmanager
def _outcome_known() -> Generator[None]:
    """Say of a failed write whether it may have happened: not if the server refused it, or nobody asked the server."""
    try:
        yield
    except PersistenceError as exc:
        exc.possibly_executed = exc.__cause__ is not None and cause(exc.__cause__) is Cause.TRANSIENT
        raise


def _pattern(prefix: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", prefix) + "%"
