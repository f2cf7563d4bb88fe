"""What the engine asks of a store. Two implementations keep these promises: `memory` and `postgres`."""

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from actorhub.core.address import RunnerInfo, ShardId, ShardOwner
from actorhub.core.errors import ActorhubError, PersistenceError
from actorhub.storage.checkpoint_ports import CheckpointStore
from actorhub.storage.key_value_ports import KeyValueStore
from actorhub.storage.message_ports import MessageStore
from actorhub.storage.singleton_ports import SingletonStore
from actorhub.storage.statistics import StorageStatistics

HEARTBEAT_INTERVAL: Final = timedelta(seconds=1)
LEASE: Final = timedelta(seconds=2.5)
"""A runner whose last acknowledged heartbeat was *sent* longer ago than this may act for no shard."""
SESSION_IDLE_LIMIT: Final = timedelta(seconds=4)
"""The server ends a lock session that was silent for this long, which frees its locks."""


NOBODY: Final[Mapping[ShardId, int]] = MappingProxyType({})


class SessionLost(ActorhubError):
    """The lock session is gone, and with it every lock that it held."""


class Fenced(PersistenceError):
    """The shard belongs to another owner or epoch: nothing was written."""

    possibly_executed = True


class VersionConflict(PersistenceError):
    """The entity's stored version is not the one before the commit's: nothing was written."""

    possibly_executed = True


class Era(msgspec.Struct, frozen=True):
    """One run of the server that has the cluster's database. Epochs are compared within one era only.

    A server that comes back may have older data: a standby that lagged was promoted, or a backup put back. So whatever
    a process learned in one era it forgets in the next one.
    """

    cluster: str
    """Identifies the cluster. It is made with the schema; a copy of the database that is adopted gets another one."""
    token: str
    """Identifies the era. Later ones are greater."""


class EraChange(msgspec.Struct, frozen=True):
    """The database is in another era."""

    era: Era
    lost: str
    """What this process saw acknowledged and is gone, in a sentence; empty if nothing, as far as is known."""


class ClusterValues(msgspec.Struct, frozen=True, kw_only=True):
    """What every runner of a cluster must agree on."""

    shards_per_group: int
    hash_version: str


class LiveRunner(msgspec.Struct, frozen=True):
    """A registered runner and how long ago the store heard from it, by the store's clock."""

    info: RunnerInfo
    silent_for: float
    """Seconds since its last heartbeat arrived."""
    started_at: float = 0.0
    """Seconds since the Unix epoch, by the store's clock."""
    read_at: float = 0.0
    """When the store was asked, by its clock, likewise."""


class TableSlice(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows of the runner table."""

    after: str
    """The incarnation that they follow, in the order of the store; empty: the first ones."""
    most: int
    """How many there may be."""
    besides: tuple[str, ...] = ()
    """Incarnations whose rows are wanted too, wherever they are. They do not count."""


class ShardRow(msgspec.Struct, frozen=True):
    """The stored owner of a shard; `owner` is `None` after a graceful release."""

    shard: ShardId
    epoch: int
    owner: ShardOwner | None


class StoredState(msgspec.Struct, frozen=True, eq=False):
    """The committed state of an entity; two are equal whatever their age and shard."""

    version: int
    data: bytes
    age: float = 0.0
    """Seconds since it was committed, by the store's clock."""
    shard: ShardId | None = None
    """The shard in which it was committed, or to which the entity was moved since; `None` where nobody knows."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredState) and (self.version, self.data) == (other.version, other.data)

    def __hash__(self) -> int:
        return hash((self.version, self.data))


class StateCommit(msgspec.Struct, frozen=True):
    """One entity's next state, to be written only if shard ownership and version still hold."""

    shard: ShardId
    epoch: int
    entity_type: str
    entity_id: str
    version: int
    """The version that this commit makes: the committed one plus one; 1 for a new entity."""
    data: bytes


class LockSession(Protocol):
    """One dedicated session that holds this runner's shard locks; lost once, lost for good (never reconnects).

    A lock that was another session's is given away only once that session has ended: it can prove itself alive no more.

    One operation runs at a time; each has a hard deadline, and one that misses it loses the session.
    Every method raises `SessionLost` once the session is gone.
    """

    @property
    def lost(self) -> bool:
        """Whether the session is known to be gone."""
        ...

    @property
    def outlives_process(self) -> bool:
        """Whether the session goes on when this process dies, until it is silent for too long or a peer ends it."""
        ...

    async def heartbeat(self, info: RunnerInfo, only: TableSlice | None = None) -> Sequence[LiveRunner]:
        """Prove the session alive, write `info`'s row (again, if somebody deleted it), return registered runners.

        They are all, or with `only` that slice of the table, and `info`'s in any case, each once. What it costs depends
        on how many are returned, and not on how many there are. The rows of the slice come in its order.

        A new row gets the slot of a row with the same address if there is one, else the lowest that no row of an
        overlapping set of groups has, and keeps it. `info.slot` is ignored.
        """
        ...

    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Return those of `shards` whose lock this session now holds; asking again for a held one returns it, once."""
        ...

    async def unlock(self, shards: Sequence[ShardId]) -> None:
        """Free the locks of `shards`; those not held are ignored."""
        ...

    async def aclose(self) -> None:
        """End the session, which frees its locks. Bounded in time, never raises `SessionLost`, can be called twice."""
        ...


class Storage(Protocol):
    """One process's access to the cluster's store. All methods raise `PersistenceError` when the store fails."""

    @property
    def messages(self) -> MessageStore:
        """The durable messages; open and closed with the storage."""
        ...

    @property
    def checkpoints(self) -> CheckpointStore:
        """Results of steps and deferred values; open and closed with the storage."""
        ...

    @property
    def singletons(self) -> SingletonStore:
        """Singletons and their schedules; open and closed with the storage."""
        ...

    @property
    def key_values(self) -> KeyValueStore:
        """The key-value store; open and closed with the storage."""
        ...

    @property
    def era(self) -> Era:
        """The era that this process works in, as found by `open`, and later whenever the store is another one."""
        ...

    @property
    def obstacle(self) -> str:
        """Why the store, though it answers, cannot be used as it is now; empty if it can."""
        ...

    def on_era(self, listener: Callable[[EraChange], None]) -> None:
        """Have `listener` called, synchronously, when another era begins for this process.

        Nothing is asked in an era before that. What was asked in the one before fails if something was lost, and is
        repeated, if at all, otherwise.
        """
        ...

    async def check_era(self) -> None:
        """Find out whether the era is still the present one; if not, the present one is entered."""
        ...

    def statistics(self) -> StorageStatistics:
        """Return what is counted so far."""
        ...

    async def open(self) -> None:
        """Connect, check the server (version, durability, schema) and apply missing migrations.

        Raises:
            ConfigurationError: the store cannot serve; says what to do.
        """
        ...

    async def aclose(self) -> None:
        """Let go of every connection. Bounded in time; can be called twice."""
        ...

    async def agree(self, values: ClusterValues, groups: int = 1) -> None:
        """Store `values` if they are the first, else compare; check that the locks of `groups` groups have room.

        Where the store knows several kinds of locks, all runners that are alive must have the same.

        Raises:
            ConfigurationError: the cluster has another value, or another kind of locks, or the server has no room for
                that many shard locks; names both sides and the remedy.
        """
        ...

    async def cluster_values(self) -> ClusterValues | None:
        """Return what the cluster agreed on; `None` before its first runner."""
        ...

    async def secret(self) -> bytes:
        """Return 16 random bytes that the cluster keeps, made by whoever asks first: they sign tokens."""
        ...

    async def open_lock_session(self, incarnation: str) -> LockSession:
        """Return a new lock session; its server side is marked with `incarnation`.

        Raises:
            ConfigurationError: the server gives the connection no session of its own: a pooler sits in between.
        """
        ...

    async def terminate_sessions(self, incarnation: str) -> int:
        """End the lock sessions of a stale incarnation on the server; return how many there were."""
        ...

    async def runners(self) -> Sequence[LiveRunner]:
        """Return every registered runner."""
        ...

    async def remove_runner(self, incarnation: str) -> None:
        """Delete the runner's row; nothing happens when there is none."""
        ...

    async def take(
        self, shards: Sequence[ShardId], info: RunnerInfo, gone: Mapping[ShardId, int] = NOBODY
    ) -> Mapping[ShardId, int]:
        """Become owner of those of `shards` that are free, whose locks the caller holds; return their new epochs.

        Free are those without an owner, those that this incarnation owned itself, and those that are still at the epoch
        that `gone` names: the caller knows that their owner acts for them no longer. The others stay as they are. So
        nobody is robbed of a shard by a caller that has lost its locks and does not know it.

        Each epoch grows by one. When this returns, no commit of a former owner is under way, and none will be accepted:
        the former incarnations' fences are taken exclusively while owner and epoch are written.
        """
        ...

    async def release(self, shards: Mapping[ShardId, int], incarnation: str) -> None:
        """Write that `shards` (shard to epoch) have no owner, those that (`incarnation`, epoch) still owns.

        When this returns, no commit of the incarnation is under way in them.
        """
        ...

    async def shards(self) -> Sequence[ShardRow]:
        """Return every shard that ever had an owner."""
        ...

    def load_state(self, entity_type: str, entity_id: str) -> Future[StoredState | None]:
        """Return a future of the committed state. Concurrent loads share round trips.

        The future fails with `PersistenceError`; cancelling it drops the result, nothing else.
        """
        ...

    def commit_state(self, commit: StateCommit, incarnation: str) -> Future[None]:
        """Write the state if `incarnation` owns the shard at that epoch and the stored version is `version - 1`.

        Concurrent commits share one transaction; one refused row never fails another. A commit whose outcome is
        unknown (lost connection) is repeated until it is known: repeating the same commit is harmless.
        The call only queues and returns a future. A cancelled future leaves the outcome open: the write may happen.

        Raises (from the future):
            Fenced: ownership was lost. Nothing was written.
            VersionConflict: another version is stored. Nothing was written.
            PersistenceError: Postgres failed it for another reason, or stayed unreachable.
        """
        ...

    async def move_entity(
        self, entity: tuple[str, str], *, source: ShardId, source_owner: str | None, target: ShardId, incarnation: str
    ) -> int:
        """Move the stored state and the pending messages of an entity from one shard to another, in one step.

        Keys, due times and counts stay as they are. What lies in a third shard stays there. When this returns, no
        commit of a former or other owner of `source` is under way. Returns how many messages were moved. If this is
        cancelled or fails, it is known within a second whether they were: no move that was given up happens later.

        Args:
            entity: Type and id.
            source: The shard in which it was.
            source_owner: The incarnation that owns `source`, and agrees; `None`: nobody who is alive owns it.
            target: The shard in which it is to be.
            incarnation: Who asks; it must own `source` or `target`.

        Raises:
            Fenced: the shards have other owners. Nothing was moved.
        """
        ...

    async def lease_machine_id(self, holder: str, duration: timedelta) -> int:
        """Return a machine id in [0, 1024) that no other live holder has, kept for `duration`; renews the holder's own.

        A holder whose lease ran out may get another id than before.

        Raises:
            PersistenceError: all are taken.
        """
        ...

    async def release_machine_id(self, holder: str) -> None:
        """Give the holder's machine id back."""
        ...
