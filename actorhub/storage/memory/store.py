"""What a server would keep: one `MemoryStore` stands for one database."""

import asyncio
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.storage.memory.checkpoint_table import CheckpointTable
from actorhub.storage.memory.key_value_table import KeyValueTable
from actorhub.storage.memory.message_table import MessageTable
from actorhub.storage.memory.singleton_table import SingletonTable
from actorhub.storage.memory.state_table import StateRow, StateTable
from actorhub.storage.ports import (
    SESSION_IDLE_LIMIT,
    ClusterValues,
    Era,
    Fenced,
    LiveRunner,
    ShardRow,
    StateCommit,
    StoredState,
    TableSlice,
)

MACHINE_IDS: Final = 1024
_KEPT: Final = ("_values", "_secret", "_runners", "_shards", "_machine_ids", "_eras", "position")
"""What a backup contains beside the tables."""
_LIVE_SECONDS: Final = 10.0
"""A runner that was heard of so long ago still leads its singletons."""


class _Shard(msgspec.Struct):
    epoch: int = 0
    owner: RunnerAddress | None = None


class _Registration(msgspec.Struct):
    info: RunnerInfo
    heartbeat_at: float
    started_at: float


class _EraRow(msgspec.Struct, frozen=True):
    era: Era
    recovered_to: int


@dataclasses.dataclass(frozen=True, eq=False)
class Backup:
    """What a store held at one moment."""

    parts: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]


class _Lease(msgspec.Struct):
    id: int
    expires_at: float


@dataclasses.dataclass(eq=False)
class ServerSession:
    """The server's side of a lock session."""

    incarnation: str
    heard_at: float
    ended: bool = False
    frozen: bool = False
    thawed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class MemoryStore:
    """A database in memory; each `MemoryStorage` of it acts as one process.

    Everything happens in one step of the loop, so each method is a transaction. Time is the clock's: a lock session
    that was silent for `SESSION_IDLE_LIMIT` has ended for whoever comes next.
    """

    def __init__(self, clock: Clock) -> None:
        self.available = True
        """Whether it answers: while `False`, every operation fails like one on a stopped server."""
        self._clock = clock
        self._values: ClusterValues | None = None
        self._secret: bytes | None = None
        self._sessions: list[ServerSession] = []
        self._frozen: list[ServerSession] = []
        self._locks: dict[ShardId, ServerSession] = {}
        self._runners: dict[str, _Registration] = {}
        self._shards: dict[ShardId, _Shard] = {}
        self._states = StateTable(clock)
        self.checkpoints = CheckpointTable(clock)
        """Results of steps and deferred values."""
        self.messages = MessageTable(clock, self._states, self.checkpoints, self._owns)
        """The durable messages."""
        self.singletons = SingletonTable(
            clock=clock, states=self._states, checkpoints=self.checkpoints, owns=self._owns, is_live=self._is_live
        )
        """Singletons and their schedules."""
        self.key_values = KeyValueTable(clock)
        """The key-value store."""
        self._machine_ids: dict[str, _Lease] = {}
        self.position = 0
        """How far the log has come: it grows with every write that matters."""
        self._eras: list[_EraRow] = []
        self._begin_era()

    @property
    def era(self) -> Era:
        """The present era: it ends with a restart."""
        return self._eras[-1].era

    def parted_at(self, tokens: Sequence[str]) -> int:
        """Return how far the log had come where the past of this store and that of a process in those eras part."""
        common = [place for place, row in enumerate(self._eras[:-1]) if row.era.token in tokens]
        return self._eras[common[-1] + 1].recovered_to if common else 0

    def back_up(self) -> Backup:
        """Return a copy of everything that is stored."""
        parts = {name: dict(vars(part)) for name, part in self._parts().items()}
        return copy.deepcopy(Backup(parts, {name: getattr(self, name) for name in _KEPT}), self._references())

    def restore(self, backup: Backup) -> None:
        """Put a backup in the place of what is stored, and restart: what was written since is lost."""
        found = copy.deepcopy(backup, self._references())
        for name, part in self._parts().items():
            vars(part).update(found.parts[name])
        for name, value in found.values.items():
            setattr(self, name, value)
        self.restart()

    def _parts(self) -> Mapping[str, object]:
        return {
            "states": self._states,
            "checkpoints": self.checkpoints,
            "messages": self.messages,
            "singletons": self.singletons,
            "key_values": self.key_values,
        }

    def _references(self) -> dict[int, Any]:
        """Return what a backup refers to and does not contain, as `copy.deepcopy` wants it."""
        return {id(one): one for one in (self, self._clock, *self._parts().values())}

    def _begin_era(self) -> None:
        cluster = self._eras[-1].era.cluster if self._eras else self._clock.token()
        earlier = int(self._eras[-1].era.token.partition("-")[0]) if self._eras else 0
        token = f"{max(round(self._clock.time() * 1000), earlier + 1):013d}-{self._clock.token()}"
        self._eras.append(_EraRow(Era(cluster, token), self.position))

    def freeze_sessions(self, incarnation: str) -> int:
        """Make the lock sessions of `incarnation` silent, as a stopped process is; return how many there are."""
        found = list(self._sessions_of(incarnation))
        for session in found:
            session.frozen = True
            session.thawed.clear()
        self._frozen += found
        return len(found)

    def thaw_sessions(self, incarnation: str) -> None:
        """Let frozen lock sessions of `incarnation` go on; those that the store has ended meanwhile notice it now."""
        for session in [session for session in self._frozen if session.incarnation == incarnation]:
            self._frozen.remove(session)
            session.frozen = False
            session.thawed.set()

    def restart(self) -> None:
        """End every lock session, as a restart of the server does; what was committed stays."""
        for session in list(self._sessions):
            self.end_session(session)
        self._begin_era()

    def check_available(self) -> None:
        """Do nothing while the store answers.

        Raises:
            PersistenceError: it does not.
        """
        if not self.available:
            raise PersistenceError("the store is unreachable")

    def agreed(self, values: ClusterValues) -> ClusterValues:
        """Return the cluster's values: `values` if they are the first."""
        self._values = self._values or values
        return self._values

    @property
    def values(self) -> ClusterValues | None:
        """What the cluster agreed on."""
        return self._values

    def secret(self) -> bytes:
        """Return what the cluster signs tokens with."""
        if self._secret is None:
            self._secret = bytes.fromhex(self._clock.token() + self._clock.token())
        return self._secret

    def open_session(self, incarnation: str) -> ServerSession:
        """Return a new lock session."""
        session = ServerSession(incarnation, self._clock.monotonic())
        self._sessions.append(session)
        return session

    def end_session(self, session: ServerSession) -> None:
        """End a lock session and free its locks; nothing happens if that was done before."""
        session.ended = True
        if session in self._sessions:
            self._sessions.remove(session)
            self._locks = {shard: holder for shard, holder in self._locks.items() if holder is not session}

    def end_silent_sessions(self) -> None:
        """End the lock sessions that were silent for too long."""
        limit = self._clock.monotonic() - SESSION_IDLE_LIMIT.total_seconds()
        for session in [session for session in self._sessions if session.heard_at <= limit]:
            self.end_session(session)

    def terminate_sessions(self, incarnation: str) -> int:
        """End the lock sessions of `incarnation`; return how many there were."""
        found = list(self._sessions_of(incarnation))
        for session in found:
            self.end_session(session)
        return len(found)

    def hear(self, session: ServerSession) -> None:
        """Note that a session spoke."""
        session.heard_at = self._clock.monotonic()

    def try_lock(self, session: ServerSession, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Return those of `shards` whose lock `session` holds now."""
        self.end_silent_sessions()
        return [shard for shard in dict.fromkeys(shards) if self._locks.setdefault(shard, session) is session]

    def unlock(self, session: ServerSession, shards: Sequence[ShardId]) -> None:
        """Free those of `shards` whose lock `session` holds."""
        for shard in shards:
            if self._locks.get(shard) is session:
                del self._locks[shard]

    def register(self, info: RunnerInfo) -> None:
        """Write a runner's row."""
        now = self._clock.monotonic()
        known = self._runners.get(info.runner.incarnation)
        started_at = self._clock.time() if known is None else known.started_at
        slot = self._free_slot(info) if known is None else known.info.slot
        self._runners[info.runner.incarnation] = _Registration(
            msgspec.structs.replace(info, slot=slot), now, started_at
        )

    def _free_slot(self, info: RunnerInfo) -> int:
        others = [row.info for row in self._runners.values()]
        for other in others:
            if other.runner.address == info.runner.address:
                return other.slot
        taken = {other.slot for other in others if not set(other.groups).isdisjoint(info.groups)}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def runners(self) -> Sequence[LiveRunner]:
        """Return every registered runner."""
        now, read_at = self._clock.monotonic(), self._clock.time()
        return [LiveRunner(row.info, now - row.heartbeat_at, row.started_at, read_at) for row in self._runners.values()]

    def some_runners(self, only: TableSlice, own: str) -> Sequence[LiveRunner]:
        """Return the slice of the registered runners, and the caller's own."""
        rows = {row.info.runner.incarnation: row for row in self.runners()}
        apart = {own, *only.besides}
        following = [name for name in sorted(rows) if name > only.after and name not in apart]
        return [rows[name] for name in (*following[: only.most], *sorted(apart)) if name in rows]

    def remove_runner(self, incarnation: str) -> None:
        """Delete a runner's row."""
        self._runners.pop(incarnation, None)

    def is_free(self, shard: ShardId, runner: RunnerAddress, gone: Mapping[ShardId, int]) -> bool:
        """Return whether `runner` may take a shard: it has no other owner, or one that is `gone` at its epoch."""
        row = self._shards.get(shard)
        if row is None or row.owner is None or row.owner.incarnation == runner.incarnation:
            return True
        return row.epoch == gone.get(shard)

    def take(self, shards: Sequence[ShardId], runner: RunnerAddress) -> Mapping[ShardId, int]:
        """Make `runner` owner at the next epochs; return those."""
        epochs: dict[ShardId, int] = {}
        for shard in dict.fromkeys(shards):
            row = self._shards.setdefault(shard, _Shard())
            row.epoch += 1
            row.owner = runner
            epochs[shard] = row.epoch
        return epochs

    def release(self, shards: Mapping[ShardId, int], incarnation: str) -> None:
        """Leave those of `shards` without an owner that `incarnation` owns at the given epoch."""
        for shard, epoch in shards.items():
            if self._owns(incarnation, shard, epoch):
                self._shards[shard].owner = None

    def shards(self) -> Sequence[ShardRow]:
        """Return every shard that ever had an owner, in order."""
        return [
            ShardRow(shard, row.epoch, None if row.owner is None else ShardOwner(shard, row.owner, row.epoch))
            for shard, row in sorted(self._shards.items())
        ]

    def load(self, key: tuple[str, str]) -> StoredState | None:
        """Return an entity's committed state."""
        return self._states.load(key)

    def overwrite(self, key: tuple[str, str], state: StoredState, epoch: int = 1) -> None:
        """Write a state without asking who owns what, as somebody with psql can."""
        self._states.write(key, StateRow(state.version, epoch, state.data), state.age)

    def commit(self, commit: StateCommit, incarnation: str) -> None:
        """Write a state, or see that this very commit was written before.

        Raises:
            Fenced: `incarnation` does not own the shard at that epoch.
            VersionConflict: another version is stored.
        """
        key = (commit.entity_type, commit.entity_id)
        made = StateRow(commit.version, commit.epoch, commit.data, commit.shard)
        if self._states.holds(key, made):
            return
        if not self._owns(incarnation, commit.shard, commit.epoch):
            raise Fenced(f"{commit.shard} no longer belongs to {incarnation} at epoch {commit.epoch}")
        self._states.check(key, made)
        self._states.write(key, made)

    def move_entity(
        self, key: tuple[str, str], *, source: ShardId, source_owner: str | None, target: ShardId, incarnation: str
    ) -> int:
        """Move an entity's state and pending messages to another shard; return how many messages that were.

        Raises:
            Fenced: the shards have other owners.
        """
        former, its_own = self._owner_of(source), self._owner_of(target)
        is_agreed = former == source_owner or (source_owner is None and not self._is_live(former or ""))
        if not is_agreed or incarnation not in (former, its_own):
            raise Fenced(f"{source} or {target} has another owner: nothing of {'/'.join(key)} was moved")
        self._states.move(key, source, target)
        return self.messages.move(key, source, target)

    def lease_machine_id(self, holder: str, duration: timedelta) -> int | None:
        """Return the holder's id, renewed, else a fresh one, else the one that expired first; `None`: all are taken."""
        now = self._clock.monotonic()
        lease = self._machine_ids.get(holder)
        if lease is None:
            taken = {other.id for other in self._machine_ids.values()}
            fresh = next((number for number in range(MACHINE_IDS) if number not in taken), None)
            expired = sorted(
                (other.expires_at, name) for name, other in self._machine_ids.items() if other.expires_at <= now
            )
            if fresh is None and not expired:
                return None
            lease = _Lease(fresh, 0.0) if fresh is not None else self._machine_ids.pop(expired[0][1])
            self._machine_ids[holder] = lease
        lease.expires_at = now + duration.total_seconds()
        return lease.id

    def release_machine_id(self, holder: str) -> None:
        """Give the holder's id back."""
        self._machine_ids.pop(holder, None)

    def _owns(self, incarnation: str, shard: ShardId, epoch: int) -> bool:
        row = self._shards.get(shard)
        return row is not None and row.epoch == epoch and row.owner is not None and row.owner.incarnation == incarnation

    def _owner_of(self, shard: ShardId) -> str | None:
        row = self._shards.get(shard)
        return None if row is None or row.owner is None else row.owner.incarnation

    def _is_live(self, incarnation: str) -> bool:
        row = self._runners.get(incarnation)
        return row is not None and self._clock.monotonic() - row.heartbeat_at < _LIVE_SECONDS

    def _sessions_of(self, incarnation: str) -> Iterator[ServerSession]:
        self.end_silent_sessions()
        return (session for session in list(self._sessions) if session.incarnation == incarnation)
