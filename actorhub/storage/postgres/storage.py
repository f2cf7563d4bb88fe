"""The store on Postgres."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import asyncpg
import msgspec
from typing_extensions import override

from actorhub.core.address import RunnerInfo, ShardId, fence_lock_key, lock_key
from actorhub.core.clock import Clock
from actorhub.core.config.settings import Locks
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.storage.agreement import check_agreement
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
)
from actorhub.storage.postgres.batcher import Batcher
from actorhub.storage.postgres.checkpoints import PostgresCheckpoints
from actorhub.storage.postgres.connection import Database
from actorhub.storage.postgres.connections import NEEDED, Connections
from actorhub.storage.postgres.control import LONG, Lane
from actorhub.storage.postgres.dedicated import DedicatedSession, application_name
from actorhub.storage.postgres.eras import EraGuard
from actorhub.storage.postgres.errors import limit_met
from actorhub.storage.postgres.key_values import PostgresKeyValues
from actorhub.storage.postgres.leases import SILENCE_LIMIT, open_lease_session
from actorhub.storage.postgres.messages import PostgresMessages
from actorhub.storage.postgres.rows import live_runners, shard_row
from actorhub.storage.postgres.schema import check_namespace
from actorhub.storage.postgres.server import ServerFacts, check_lock_table
from actorhub.storage.postgres.session import open_lock_session
from actorhub.storage.postgres.singletons import PostgresSingletons
from actorhub.storage.postgres.start import check_lock_way, start
from actorhub.storage.postgres.state import StateCommits, StateLoads
from actorhub.storage.statistics import StorageCounters, StorageStatistics

_log: Final = get_logger(__name__)

FEWEST: Final = NEEDED + 1
"""Connections of a runner, the lock session's included."""
_MOST_OF_CLIENT: Final = 4
_AGREEMENT_LIMIT: Final = 0.5 + SILENCE_LIMIT.total_seconds()
"""Seconds in which runners that were killed just now are known to be gone."""
_AGREEMENT_PAUSE: Final = 0.1
_TAKE_ATTEMPTS: Final = 3
_MOVING: Final = {"statement_timeout": "4s", "lock_timeout": "1s", "idle_in_transaction_session_timeout": "1s"}
"""Settings of moves of entities. These have a transaction each, which the last one ends if its commit is late: whoever
gave a move up knows that it is over soon."""
HOT_QUERIES: Final = (
    "column_types",
    "load_states",
    "commit_states",
    "store_messages",
    "start_runs",
    "commit_runs",
    "fail_runs",
    "load_backlog",
    "load_entities",
    "load_scheduled",
    "promote_due",
    "load_checkpoints",
    "write_checkpoints",
    "take",
    "release",
    "runners",
)
"""What a runner needs first. Preparing a statement takes a round trip, and more where it has types of the schema."""


class PostgresStorage(Storage):
    """A `Storage` in one schema of a Postgres database.

    Args:
        url: `postgresql://user:password@host:port/database`, or with `?host=/directory` for a Unix socket.
        namespace: The schema; clusters of different namespaces do not see each other.
        clock: Source of time and jitter for reconnects.
        fence: `False` leaves invariant B to luck: for measurements and mutation tests only.
        max_connections: How many connections there are at most, the lock session's included: `FEWEST` or more.
        lock_url: Another way to the same database, for the lock session alone.
        client: Whether it is a client's, which needs one connection and has no lock session.
        locks: How runners hold their shards, the same in the whole cluster: by advisory locks of one session of the
            server (`session`), or by rows, for which every way to the database will do (`lease`).
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "actorhub",
        clock: Clock,
        fence: bool = True,
        max_connections: int = 10,
        lock_url: str | None = None,
        client: bool = False,
        locks: Locks = "session",
    ) -> None:
        if max_connections < FEWEST:
            raise ConfigurationError(f"max_connections = {max_connections} is too few: {FEWEST} are needed at least")
        self._database = Database(url, check_namespace(namespace))
        self._lock_database = Database(lock_url, namespace) if lock_url else self._database
        self._clock = clock
        self._fence = fence
        self._locks: Locks = locks
        self._counters = StorageCounters()
        self._eras = EraGuard(self._database, self._counters)
        self._database.guard = self._lock_database.guard = self._eras
        self._eras.past.listen(self._on_era)
        most, kept = (min(max_connections, _MOST_OF_CLIENT), 1) if client else (max_connections - 1, NEEDED)
        self._connections = Connections(self._database, clock, most=most, kept=kept, counters=self._counters)
        self._warm = () if client else HOT_QUERIES
        self._control = Lane(self._connections)
        # A take may wait for a fence. What ends the fence's holder must not queue behind it.
        self._ownership = Lane(self._connections, LONG, slow=True)
        self._takeovers = Lane(self._connections, {**LONG, "lock_timeout": "500ms"}, slow=True)
        self._moves = Lane(self._connections, _MOVING, slow=True)
        self._endings = Lane(self._connections, LONG)
        self._loads = Batcher(self._connections, clock, StateLoads(self._counters), self._counters)
        self._commits = Batcher(
            self._connections, clock, StateCommits(namespace, self._counters, fence=fence), self._counters
        )
        self._messages = PostgresMessages(self._connections, clock, self._counters, self._fence_key)
        self._checkpoints = PostgresCheckpoints(self._connections)
        self._singletons = PostgresSingletons(self._connections, self._fence_key, self._counters)
        self._key_values = PostgresKeyValues(self._connections, clock, self._counters)
        self._facts: ServerFacts | None = None

    def __repr__(self) -> str:
        return f"PostgresStorage({self._database.place!r}, namespace={self._database.namespace!r})"

    @property
    @override
    def messages(self) -> PostgresMessages:
        return self._messages

    @property
    @override
    def checkpoints(self) -> PostgresCheckpoints:
        return self._checkpoints

    @property
    @override
    def singletons(self) -> PostgresSingletons:
        return self._singletons

    @property
    @override
    def key_values(self) -> PostgresKeyValues:
        return self._key_values

    @property
    @override
    def era(self) -> Era:
        return self._eras.past.present

    @property
    @override
    def obstacle(self) -> str:
        return self._eras.obstacle

    @override
    def on_era(self, listener: Callable[[EraChange], None]) -> None:
        self._eras.past.listen(listener)

    @override
    async def check_era(self) -> None:
        # A new connection is checked; one that is there already may be to a database that other data was put into.
        rows = await self._control.fetch("read the database's era", "present_era")
        if not rows or rows[0][0] != self._eras.era:
            self._connections.renew()
            await self._control.fetch("read the database's era", "present_era")

    def _on_era(self, change: EraChange) -> None:
        self._connections.renew()
        if change.lost:
            # Repeated, it could be taken for something that is still known.
            for part in (self._loads, self._commits, self._messages):
                part.give_up(PersistenceError(change.lost, possibly_executed=True))

    @override
    def statistics(self) -> StorageStatistics:
        parts = (self._loads, self._commits, self._messages, self._key_values)
        return self._counters.snapshot(sum(part.pending for part in parts))

    @override
    async def open(self) -> None:
        try:
            self._facts, entered = await start(self._database)
            self._eras.on_entered(entered)
            if self._lock_database is not self._database:
                await check_lock_way(self._lock_database)
            await self._connections.open(self._warm)
        except BaseException:
            await self._connections.aclose()
            raise

    @override
    async def aclose(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for part in (self._loads, self._commits, self._messages, self._key_values):
                tasks.create_task(part.aclose())
        await self._connections.aclose()

    @override
    async def agree(self, values: ClusterValues, groups: int = 1) -> None:
        if self._locks == "session":
            self.check_lock_table(values.shards_per_group * groups)
        mine = {name: msgspec.json.encode(value).decode() for name, value in msgspec.structs.asdict(values).items()}
        await self._control.fetch("store cluster-wide values", "agree", list(mine), list(mine.values()))
        stored = await self.cluster_values()
        if stored is None:
            raise PersistenceError("cluster-wide values vanished while they were compared")
        check_agreement(stored, values, self._cluster)
        await self._agree_on_locks()

    async def _agree_on_locks(self) -> None:
        """Have the cluster's runners hold shards as this one does, if none of them is alive.

        Raises:
            ConfigurationError: they are, and they do not.
        """
        wanted, until = msgspec.json.encode(self._locks).decode(), self._clock.monotonic() + _AGREEMENT_LIMIT
        while (agreed := await self._agreed_locks(wanted)) != wanted:
            if self._clock.monotonic() > until:
                raise ConfigurationError(
                    f"locks is {agreed} in the cluster in {self._cluster}, this runner has {wanted}, and their locks "
                    f"do not see each other: start it with --locks {msgspec.json.decode(agreed)}, or stop all runners "
                    "first: while none is alive, the next one to start decides"
                )
            await asyncio.sleep(_AGREEMENT_PAUSE)
        kind = "leases" if self._locks == "lease" else "advisory locks of a session of each runner's own"
        _log.info("the runners of %s hold their shards by %s (--locks %s)", self._cluster, kind, self._locks)

    async def _agreed_locks(self, wanted: str) -> str:
        rows = await self._control.fetch("agree on locks", "agree_on_locks", wanted, SILENCE_LIMIT)
        return str(rows[0][0])

    @property
    def _cluster(self) -> str:
        return f"namespace {self._database.namespace} at {self._database.place}"

    @override
    async def cluster_values(self) -> ClusterValues | None:
        rows = await self._control.fetch("read cluster-wide values", "cluster_values")
        stored = {row["name"]: msgspec.Raw(row["value"].encode()) for row in rows}
        if any(name not in stored for name in ClusterValues.__struct_fields__):
            return None
        try:
            return msgspec.json.decode(msgspec.json.encode(stored), type=ClusterValues)
        except msgspec.MsgspecError as exc:
            raise ConfigurationError(
                f"table cluster_value of namespace {self._database.namespace} is damaged: {exc}: correct or empty it"
            ) from exc

    @override
    async def secret(self) -> bytes:
        made = bytes.fromhex(self._clock.token() + self._clock.token())
        await self._control.fetch("store the cluster's secret", "keep_secret", made)
        rows = await self._control.fetch("read the cluster's secret", "secret")
        if not rows:
            raise PersistenceError("the cluster's secret vanished while it was read")
        return bytes(rows[0][0])

    def check_lock_table(self, shards: int) -> None:
        """Check that the server has room for a lock on each of `shards`, all groups together.

        Raises:
            ConfigurationError: there is not enough room; says what to set.
        """
        if self._facts is not None:
            check_lock_table(self._facts, shards, self._database.place)

    @override
    async def open_lock_session(self, incarnation: str) -> DedicatedSession:
        try:
            if self._locks == "lease":
                return await open_lease_session(self._database, incarnation, self._clock.token())
            if self._lock_database is self._database:
                return await open_lock_session(self._database, incarnation)
            return await open_lock_session(self._lock_database, incarnation, self._sees_lock)
        except PersistenceError as exc:
            if exc.__cause__ is not None and limit_met(exc.__cause__):
                self._connections.give_way(exc.__cause__)
            raise

    @override
    async def terminate_sessions(self, incarnation: str) -> int:
        if self._locks == "lease":
            rows = await self._endings.fetch("end lock sessions", "end_lease_sessions", incarnation)
        else:
            rows = await self._endings.fetch("end lock sessions", "terminate_sessions", application_name(incarnation))
        return int(rows[0][0])

    @override
    async def runners(self) -> Sequence[LiveRunner]:
        return live_runners(await self._control.fetch("read runners", "runners"))

    @override
    async def remove_runner(self, incarnation: str) -> None:
        await self._control.fetch("remove a runner", "remove_runner", incarnation)

    @override
    async def take(
        self, shards: Sequence[ShardId], info: RunnerInfo, gone: Mapping[ShardId, int] = NOBODY
    ) -> Mapping[ShardId, int]:
        wanted = {(shard.group, shard.number): shard for shard in shards}
        if not wanted:
            return {}
        groups, numbers = [key[0] for key in wanted], [key[1] for key in wanted]
        epochs = [gone.get(shard) for shard in wanted.values()]
        runner = info.runner
        fence = self._fence_key(runner.incarnation)
        attempt = 1
        # A former owner that froze in the middle of a transaction still holds its fence. It may not finish: after a
        # while (lock_timeout) the server processes that hold the fences are ended, which rolls their transactions back,
        # and the take is tried again. What is left of an owner that is gone gets less time than our own commits.
        lane = self._takeovers if gone else self._ownership
        while True:
            try:
                rows = await lane.fetch(
                    "take shards", "take", groups, numbers, runner.incarnation, runner.address, fence, epochs
                )
                return {wanted[group, number]: epoch for group, number, epoch in rows}
            except PersistenceError as exc:
                if not isinstance(exc.__cause__, asyncpg.LockNotAvailableError) or attempt == _TAKE_ATTEMPTS:
                    raise
                attempt += 1
                what = "end commits that hold up a take"
                await self._endings.fetch(what, "end_fence_holders", groups, numbers, runner.incarnation, epochs)

    @override
    async def release(self, shards: Mapping[ShardId, int], incarnation: str) -> None:
        if not shards:
            return
        groups, numbers = [shard.group for shard in shards], [shard.number for shard in shards]
        fence = self._fence_key(incarnation)
        await self._ownership.fetch(
            "release shards", "release", groups, numbers, list(shards.values()), incarnation, fence
        )

    @override
    async def shards(self) -> Sequence[ShardRow]:
        return [shard_row(row) for row in await self._control.fetch("read shards", "shards")]

    @override
    def load_state(self, entity_type: str, entity_id: str) -> Future[StoredState | None]:
        key = (entity_type, entity_id)
        return self._loads.submit_nowait(key, key, "", 0)

    @override
    def commit_state(self, commit: StateCommit, incarnation: str) -> Future[None]:
        return self._commits.submit_nowait(
            commit, (commit.entity_type, commit.entity_id), incarnation, len(commit.data)
        )

    @override
    async def move_entity(
        self, entity: tuple[str, str], *, source: ShardId, source_owner: str | None, target: ShardId, incarnation: str
    ) -> int:
        shards = (source.group, source.number, target.group, target.number)
        rows = await self._moves.fetch("move an entity", "move_entity", incarnation, source_owner, *entity, *shards)
        if (moved := int(rows[0][0])) < 0:
            raise Fenced(f"{source} or {target} has another owner: nothing of {'/'.join(entity)} was moved")
        return moved

    @override
    async def lease_machine_id(self, holder: str, duration: timedelta) -> int:
        guard = lock_key(self._database.namespace, "machine-id")
        rows = await self._control.fetch("lease a machine id", "lease_machine_id", holder, duration, guard)
        leased: int | None = rows[0][0]
        if leased is None:
            raise PersistenceError("all 1024 machine ids are leased: close clients that are not needed")
        return leased

    @override
    async def release_machine_id(self, holder: str) -> None:
        await self._control.fetch("release a machine id", "release_machine_id", holder)

    async def _sees_lock(self, key: int) -> bool:
        rows = await self._control.fetch("look for a lock", "sees_lock", key)
        return bool(rows[0][0])

    def _fence_key(self, incarnation: str) -> int | None:
        return fence_lock_key(self._database.namespace, incarnation) if self._fence else None
