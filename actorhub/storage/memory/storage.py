"""One process's access to a memory store."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from typing_extensions import override

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.storage.agreement import check_agreement
from actorhub.storage.memory.checkpoints import MemoryCheckpoints
from actorhub.storage.memory.key_values import MemoryKeyValues
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.storage.memory.session import MemoryLockSession
from actorhub.storage.memory.singletons import MemorySingletons
from actorhub.storage.memory.store import MemoryStore
from actorhub.storage.past import Past
from actorhub.storage.ports import (
    NOBODY,
    ClusterValues,
    Era,
    EraChange,
    Fenced,
    LiveRunner,
    ShardRow,
    StateCommit,
    Storage,
    StoredState,
    VersionConflict,
)
from actorhub.storage.statistics import StorageCounters, StorageStatistics


class MemoryStorage(Storage):
    """A `Storage` on a `MemoryStore`; several of one store act as several processes.

    What is queued in one step of the loop is carried out together in the next.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._counters = StorageCounters()
        self._commits: list[tuple[StateCommit, str, Future[None]]] = []
        self._loads: list[tuple[tuple[str, str], Future[StoredState | None]]] = []
        self._closed = False
        self._past = Past()
        self._lost = ""
        """What was lost, in the step of the loop in which that was found."""
        self._messages = MemoryMessages(store.messages, self._counters, self._check_open, self._written)
        self._checkpoints = MemoryCheckpoints(store, self._check_open)
        self._singletons = MemorySingletons(store.singletons, self._counters, self._check_open)
        self._key_values = MemoryKeyValues(store.key_values, self._check_open)

    @property
    @override
    def messages(self) -> MemoryMessages:
        return self._messages

    @property
    @override
    def checkpoints(self) -> MemoryCheckpoints:
        return self._checkpoints

    @property
    @override
    def singletons(self) -> MemorySingletons:
        return self._singletons

    @property
    @override
    def key_values(self) -> MemoryKeyValues:
        return self._key_values

    @property
    @override
    def era(self) -> Era:
        return self._past.present

    @property
    @override
    def obstacle(self) -> str:
        return ""

    @override
    def on_era(self, listener: Callable[[EraChange], None]) -> None:
        self._past.listen(listener)

    @override
    async def check_era(self) -> None:
        await self._reached()

    @override
    def statistics(self) -> StorageStatistics:
        return self._counters.snapshot(len(self._commits) + len(self._loads) + len(self._messages))

    @override
    async def open(self) -> None:
        if not self._store.available:
            raise ConfigurationError("the memory store is unreachable: make it available first")
        self._closed = False
        if self._store.era != self._past.present:
            self._enter_era()

    @override
    async def aclose(self) -> None:
        self._flush_loads()
        self._flush_commits()
        self._messages.flush()
        self._closed = True

    @override
    async def agree(self, values: ClusterValues, groups: int = 1) -> None:
        check_agreement((await self._reached()).agreed(values), values, "this memory store")

    @override
    async def cluster_values(self) -> ClusterValues | None:
        return (await self._reached()).values

    @override
    async def secret(self) -> bytes:
        return (await self._reached()).secret()

    @override
    async def open_lock_session(self, incarnation: str) -> MemoryLockSession:
        store = await self._reached()
        return MemoryLockSession(store, store.open_session(incarnation))

    @override
    async def terminate_sessions(self, incarnation: str) -> int:
        return (await self._reached()).terminate_sessions(incarnation)

    @override
    async def runners(self) -> Sequence[LiveRunner]:
        return (await self._reached()).runners()

    @override
    async def remove_runner(self, incarnation: str) -> None:
        (await self._reached()).remove_runner(incarnation)

    @override
    async def take(
        self, shards: Sequence[ShardId], info: RunnerInfo, gone: Mapping[ShardId, int] = NOBODY
    ) -> Mapping[ShardId, int]:
        store = await self._reached()
        return store.take([shard for shard in shards if store.is_free(shard, info.runner, gone)], info.runner)

    @override
    async def release(self, shards: Mapping[ShardId, int], incarnation: str) -> None:
        store = await self._reached()
        self._flush_commits()
        self._messages.flush()
        store.release(shards, incarnation)

    @override
    async def shards(self) -> Sequence[ShardRow]:
        return (await self._reached()).shards()

    @override
    def load_state(self, entity_type: str, entity_id: str) -> Future[StoredState | None]:
        loop = asyncio.get_running_loop()
        future: Future[StoredState | None] = loop.create_future()
        if not self._loads:
            loop.call_soon(self._flush_loads)
        self._loads.append(((entity_type, entity_id), future))
        return future

    @override
    def commit_state(self, commit: StateCommit, incarnation: str) -> Future[None]:
        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        if not self._commits:
            loop.call_soon(self._flush_commits)
        self._commits.append((commit, incarnation, future))
        return future

    @override
    async def move_entity(
        self, entity: tuple[str, str], *, source: ShardId, source_owner: str | None, target: ShardId, incarnation: str
    ) -> int:
        return (await self._reached()).move_entity(
            entity, source=source, source_owner=source_owner, target=target, incarnation=incarnation
        )

    @override
    async def lease_machine_id(self, holder: str, duration: timedelta) -> int:
        leased = (await self._reached()).lease_machine_id(holder, duration)
        if leased is None:
            raise PersistenceError("all 1024 machine ids are leased: close clients that are not needed")
        return leased

    @override
    async def release_machine_id(self, holder: str) -> None:
        (await self._reached()).release_machine_id(holder)

    async def _reached(self) -> MemoryStore:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._store

    def _check_open(self) -> None:
        if self._closed:
            raise PersistenceError("the storage is closed")
        self._store.check_available()
        if self._store.era != self._past.present:
            self._enter_era()
        if self._lost:
            raise PersistenceError(self._lost, possibly_executed=True)

    def _enter_era(self) -> None:
        store = self._store
        acknowledged, self._counters.acknowledged = self._counters.acknowledged, 0
        parted_at = store.parted_at(self._past.tokens)
        self._lost = self._past.enter(store.era, parted_at=parted_at, acknowledged=acknowledged).lost
        if self._lost:
            # What was asked in the same step was asked in the belief of the era before.
            asyncio.get_running_loop().call_soon(self._forget_loss)
        else:
            self._counters.acknowledge(acknowledged)

    def _forget_loss(self) -> None:
        self._lost = ""

    def _written(self) -> None:
        self._counters.acknowledge(self._store.position)
        self._store.position += 1

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
                self._written()
                future.set_result(None)
