"""One process's access to a memory store."""

import asyncio
from asyncio import Future
from collections.abc import Mapping, Sequence
from datetime import timedelta

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.storage.agreement import check_agreement
from actorhub.storage.memory.checkpoints import MemoryCheckpoints
from actorhub.storage.memory.key_values import MemoryKeyValues
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.storage.memory.session import MemoryLockSession
from actorhub.storage.memory.singletons import MemorySingletons
from actorhub.storage.memory.store import MemoryStore
from actorhub.storage.ports import (
    ClusterValues,
    Fenced,
    LiveRunner,
    ShardRow,
    StateCommit,
    StoredState,
    VersionConflict,
)
from actorhub.storage.statistics import StorageCounters, StorageStatistics


class MemoryStorage:
    """A `Storage` on a `MemoryStore`; several of one store act as several processes.

    What is queued in one step of the loop is carried out together in the next.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._counters = StorageCounters()
        self._commits: list[tuple[StateCommit, str, Future[None]]] = []
        self._loads: list[tuple[tuple[str, str], Future[StoredState | None]]] = []
        self._closed = False
        self._messages = MemoryMessages(store.messages, self._counters, self._check_open)
        self._checkpoints = MemoryCheckpoints(store, self._check_open)
        self._singletons = MemorySingletons(store.singletons, self._counters, self._check_open)
        self._key_values = MemoryKeyValues(store.key_values, self._check_open)

    @property
    def messages(self) -> MemoryMessages:
        """The durable messages; open and closed with the storage."""
        return self._messages

    @property
    def checkpoints(self) -> MemoryCheckpoints:
        """Results of steps and deferred values; open and closed with the storage."""
        return self._checkpoints

    @property
    def singletons(self) -> MemorySingletons:
        """Singletons and their schedules; open and closed with the storage."""
        return self._singletons

    @property
    def key_values(self) -> MemoryKeyValues:
        """The key-value store; open and closed with the storage."""
        return self._key_values

    def statistics(self) -> StorageStatistics:
        """Return the counts as they are now."""
        return self._counters.snapshot(len(self._commits) + len(self._loads) + len(self._messages))

    async def open(self) -> None:
        """Begin to serve.

        Raises:
            ConfigurationError: the store is unreachable.
        """
        if not self._store.available:
            raise ConfigurationError("the memory store is unreachable: make it available first")
        self._closed = False

    async def aclose(self) -> None:
        """Carry out what waits, then refuse everything. Can be called twice."""
        self._flush_loads()
        self._flush_commits()
        self._messages.flush()
        self._closed = True

    async def agree(self, values: ClusterValues, groups: int = 1) -> None:
        """Store `values` if they are the first, else compare.

        Raises:
            ConfigurationError: the cluster has another value; names which, both sides, and the remedy.
        """
        check_agreement((await self._reached()).agreed(values), values, "this memory store")

    async def cluster_values(self) -> ClusterValues | None:
        """Return what the cluster agreed on; `None` before its first runner."""
        return (await self._reached()).values

    async def secret(self) -> bytes:
        """Return 16 random bytes that the cluster keeps, made by whoever asks first: they sign tokens."""
        return (await self._reached()).secret()

    async def open_lock_session(self, incarnation: str) -> MemoryLockSession:
        """Return a new lock session; its server side is marked with `incarnation`."""
        store = await self._reached()
        return MemoryLockSession(store, store.open_session(incarnation))

    async def terminate_sessions(self, incarnation: str) -> int:
        """End the lock sessions of a stale incarnation on the server; return how many there were."""
        return (await self._reached()).terminate_sessions(incarnation)

    async def runners(self) -> Sequence[LiveRunner]:
        """Return every registered runner."""
        return (await self._reached()).runners()

    async def remove_runner(self, incarnation: str) -> None:
        """Delete the runner's row; nothing happens when there is none."""
        (await self._reached()).remove_runner(incarnation)

    async def take(self, shards: Sequence[ShardId], info: RunnerInfo) -> Mapping[ShardId, int]:
        """Become owner of `shards`, whose locks the caller holds; return their new epochs."""
        return (await self._reached()).take(shards, info.runner)

    async def release(self, shards: Mapping[ShardId, int], incarnation: str) -> None:
        """Write that nobody owns `shards` (shard to epoch) any more, where (`incarnation`, epoch) still owns them."""
        store = await self._reached()
        self._flush_commits()
        self._messages.flush()
        store.release(shards, incarnation)

    async def shards(self) -> Sequence[ShardRow]:
        """Return every shard that ever had an owner."""
        return (await self._reached()).shards()

    def load_state(self, entity_type: str, entity_id: str) -> Future[StoredState | None]:
        """Return a future of the committed state. Concurrent loads share a step.

        The future fails with `PersistenceError`; cancelling it drops the result, nothing else.
        """
        loop = asyncio.get_running_loop()
        future: Future[StoredState | None] = loop.create_future()
        if not self._loads:
            loop.call_soon(self._flush_loads)
        self._loads.append(((entity_type, entity_id), future))
        return future

    def commit_state(self, commit: StateCommit, incarnation: str) -> Future[None]:
        """Write the state if `incarnation` owns the shard at that epoch and the stored version is `version - 1`.

        Raises (from the future):
            Fenced: ownership was lost. Nothing was written.
            VersionConflict: another version is stored. Nothing was written.
            PersistenceError: the store is unreachable.
        """
        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        if not self._commits:
            loop.call_soon(self._flush_commits)
        self._commits.append((commit, incarnation, future))
        return future

    async def lease_machine_id(self, holder: str, duration: timedelta) -> int:
        """Return a machine id in [0, 1024) that no other live holder has, kept for `duration`; renews the holder's own.

        A holder that let its lease run out may get another id than before.

        Raises:
            PersistenceError: all are taken.
        """
        leased = (await self._reached()).lease_machine_id(holder, duration)
        if leased is None:
            raise PersistenceError("all 1024 machine ids are leased: close clients that are not needed")
        return leased

    async def release_machine_id(self, holder: str) -> None:
        """Give the holder's machine id back."""
        (await self._reached()).release_machine_id(holder)

    async def _reached(self) -> MemoryStore:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._store

    def _check_open(self) -> None:
        if self._closed:
            raise PersistenceError("the storage is closed")
        self._store.check_available()

    def _flush_loads(self) -> None:
        batch, self._loads = self._loads, []
        waiting = [(key, future) for key, future in batch if not future.done()]
        if not waiting:
            return
        self._counters.load_batches += 1
        for key, future in waiting:
            try:
                self._check_open()
            except PersistenceError as exc:
                self._counters.failed += 1
                future.set_exception(exc)
            else:
                self._counters.loads += 1
                future.set_result(self._store.load(key))

    def _flush_commits(self) -> None:
        batch, self._commits = self._commits, []
        waiting = [(commit, incarnation, future) for commit, incarnation, future in batch if not future.done()]
        if not waiting:
            return
        self._counters.commit_batches += 1
        for commit, incarnation, future in waiting:
            try:
                self._check_open()
                self._store.commit(commit, incarnation)
            except (Fenced, VersionConflict) as exc:
                self._counters.refused += 1
                future.set_exception(exc)
            except PersistenceError as exc:
                exc.possibly_executed = True
                self._counters.failed += 1
                future.set_exception(exc)
            else:
                self._counters.commits += 1
                future.set_result(None)
