"""What a runner holds, and how shards go. How they come is in `acquisitions`.

An acquisition locks a shard, takes it in the store and grants it to the host. A hand-over drains it, releases it in the
store, unlocks it and announces it. The order is what keeps owners from overlapping:

- The lock comes before the take. The lock keeps two runners from *running* the shard; the take waits for commits that a
  former owner has under way, then raises the epoch, so that nothing the former owner sends later can be *committed*.
- Between the two, if the former owner did not release the shard, comes the wait until it can no longer act for it: the
  lock is free as soon as its session has ended, and it may not know (`FormerOwners`).
- The unlock comes after the drain. Whoever gets the lock may start handlers at once, so none may run here by then.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol

from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError, ShuttingDown
from actorhub.core.logger import get_logger
from actorhub.engine.model.lease import NEVER, Lease
from actorhub.engine.ownership.former_owners import Neighbours
from actorhub.engine.ownership.session import GuardedSession
from actorhub.engine.supervision import Supervisor, store_call
from actorhub.storage.ports import LiveRunner, SessionLost, Storage

_log: Final = get_logger("actorhub.ownership")

RELEASE_DEADLINE: Final = 2.0
DRAIN_MARGIN: Final = 1.0
"""Seconds by which a drain may exceed its grace before the shard is revoked."""
SLOW_DRAIN: Final = 0.5
"""Seconds after which a drain no longer counts against the number of concurrent drains."""

ShardState = Literal["owned", "acquiring", "draining", "unowned"]


class ShardHost(Neighbours, Protocol):
    """What acts for the owned shards. The synchronous methods must neither block nor raise."""

    async def prepare(self) -> None:
        """Have everything that shards need before one is granted; called before each new lock session.

        Raises:
            ActorhubError: something cannot be had.
        """
        ...

    def is_prepared(self) -> bool:
        """Whether that is so in the present era of the store."""
        ...

    def on_granted(self, shards: Mapping[ShardId, int]) -> None:
        """Start to serve these shards, at these epochs."""
        ...

    def on_revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Drop these shards, which are already lost: accept nothing, cancel what runs, forget their state."""
        ...

    async def drain(self, shard: ShardId, grace: float) -> None:
        """Start no further handler, let running ones finish within `grace` seconds, and passivate the entities.

        When this returns, nothing of the shard runs and nothing will commit. It also returns if the shard is revoked
        in the meantime.
        """
        ...

    def hasten(self, shard: ShardId, grace: float) -> None:
        """Have a drain that is under way end within `grace` seconds."""
        ...

    async def spare(self, shards: Collection[ShardId]) -> None:
        """Have the runs of owned shards that are about to be revoked not count as attempts; nothing more comes in.

        A drain does so itself, unless it overruns its time. This takes two seconds at most, and does not raise.
        """
        ...

    def observe_time(self, now: float) -> None:
        """Take note of the store's time, in seconds since the Unix epoch, from an answer that just arrived."""
        ...

    def on_members_changed(self, runners: Sequence[LiveRunner]) -> None:
        """Take note of the runners that are alive, this one included."""
        ...

    def on_released(self, shards: Mapping[ShardId, RunnerAddress | None]) -> None:
        """Announce that drained shards are free, and for whom (`None` if no other runner is known).

        A shard whose drain overran its grace was revoked before.
        """
        ...


class Holdings:
    """Every mutable fact about the shards that this runner holds.

    A shard is in `acquiring` from the first attempt at its lock until it is granted or given up, in `owned` for as long
    as anything of it may run, and in `releasing` from the start of its drain until its lock is free. It is never in
    `acquiring` and in one of the others at the same time.

    Heartbeat, watchdog and balance loop, acquisitions and drains all change this state. Each does so without an `await`
    between the check and the change, so none of them acts on what another one has just changed.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.owned: dict[ShardId, int] = {}
        self.acquiring: set[ShardId] = set()
        self.taking: set[ShardId] = set()
        """Those of `acquiring` whose take is under way: the store may name this runner as their owner already."""
        self.releasing: dict[ShardId, float] = {}
        """When the hand-over of each shard began, in monotonic seconds."""
        self.session: GuardedSession | None = None
        self.leaving = False
        self.wake = asyncio.Event()
        """Has the balance loop run once more."""
        self.changed = asyncio.Event()
        """Set whenever an acquisition or a hand-over has ended, whatever came of it."""

    def may_act(self, session: GuardedSession) -> bool:
        """Whether `session` is still the current one and the lease is fresh."""
        return session is self.session and self._lease.is_fresh()

    def state(self, shard: ShardId) -> ShardState:
        """Return what `shard` is to this runner at the moment."""
        if shard in self.releasing:
            return "draining"
        if shard in self.owned:
            return "owned"
        return "acquiring" if shard in self.acquiring else "unowned"

    def busy(self) -> set[ShardId]:
        """Return the shards with an acquisition or a hand-over under way."""
        return self.acquiring | self.releasing.keys()


class HandOvers:
    """Drains shards one by one, releases the drained ones in batches, and tells the host who is next.

    Args:
        holdings: What this runner holds.
        storage: Where a release is written.
        host: Drains the shards, and announces their release.
        supervisor: Owns the tasks.
        clock: Tells how long a drain has taken.
        incarnation: Of this runner.
        next_owner: Returns the runner that should own a shard next.
    """

    def __init__(
        self,
        *,
        holdings: Holdings,
        storage: Storage,
        host: ShardHost,
        supervisor: Supervisor,
        clock: Clock,
        incarnation: str,
        next_owner: Callable[[ShardId], RunnerAddress | None],
    ) -> None:
        self._holdings = holdings
        self._storage = storage
        self._host = host
        self._supervisor = supervisor
        self._clock = clock
        self._incarnation = incarnation
        self._next_owner = next_owner
        self._drains: dict[ShardId, asyncio.Task[None]] = {}
        self._drained: dict[ShardId, int] = {}
        """Epochs of the shards that wait for the next batch of releases."""
        self._flush: asyncio.Task[None] | None = None
        self.released = 0

    def active(self) -> int:
        """Return how many drains are under way, slow ones not counted.

        A drain waits for the user's handlers. If slow drains counted, a few long handlers would keep every other shard
        from moving.
        """
        recent = self._clock.monotonic() - SLOW_DRAIN
        return sum(1 for shard in self._drains if self._holdings.releasing.get(shard, NEVER) > recent)

    def start(self, shards: Iterable[ShardId], grace: float) -> None:
        """Begin to hand over owned shards; each drain may take `grace` seconds."""
        session = self._holdings.session
        if session is None:
            return
        for shard in shards:
            self._holdings.releasing[shard] = self._clock.monotonic()
            work = self._drain(session, shard, self._holdings.owned[shard], grace)
            self._drains[shard] = self._supervisor.spawn(work, "hand over shard")

    def give_back(self, shards: Mapping[ShardId, int]) -> None:
        """Release shards of which nothing runs here, at these epochs.

        Shards that are drained while a batch is being released form the next batch, so that leaving costs a few
        statements instead of one per shard.
        """
        for shard in shards:
            self._holdings.releasing.setdefault(shard, self._clock.monotonic())
        self._drained.update(shards)
        if self._flush is not None and not self._flush.done():
            return
        try:
            self._flush = self._supervisor.spawn(self._release_drained(), "release shards")
        except ShuttingDown:
            # This process is ending, so no task can be started. The locks are freed when the session ends.
            for shard in shards:
                self._holdings.releasing.pop(shard, None)

    def hasten(self, grace: float) -> None:
        """Have the drains that are under way end within `grace` seconds."""
        for shard in self._drains:
            self._host.hasten(shard, grace)

    def cancel(self) -> None:
        """Stop waiting for drains; the shards have been revoked."""
        for task in self._drains.values():
            task.cancel()

    async def _drain(self, session: GuardedSession, shard: ShardId, epoch: int, grace: float) -> None:
        drained = False
        try:
            work = self._host.drain(shard, grace)
            await self._supervisor.bounded(work, "drain shard", grace + DRAIN_MARGIN)
            drained = True
        except TimeoutError as error:
            _log.warning("shard %s is revoked: %s", shard, error)
            if self._holdings.owned.get(shard) == epoch and session is self._holdings.session:
                await self._host.spare((shard,))
        finally:
            self._drains.pop(shard, None)
            self._on_drain_ended(session, shard, epoch, drained=drained)

    def _on_drain_ended(self, session: GuardedSession, shard: ShardId, epoch: int, *, drained: bool) -> None:
        # While the drain waited, this runner may have fenced itself, lost the session, and taken the shard again at
        # another epoch with another session. Only the tenure that this drain belongs to may be ended here, and a lock
        # of the present session must not be freed on behalf of a former one.
        if self._holdings.owned.get(shard) == epoch:
            del self._holdings.owned[shard]
            if not drained:
                self._host.on_revoked((shard,), "its hand-over failed or overran its grace")
        if session is self._holdings.session:
            self.give_back({shard: epoch})
        else:
            self._holdings.releasing.pop(shard, None)
            self._holdings.changed.set()
            self._holdings.wake.set()

    async def _release_drained(self) -> None:
        while self._drained:
            batch, self._drained = self._drained, {}
            try:
                await self._release(batch)
            finally:
                for shard in batch:
                    self._holdings.releasing.pop(shard, None)
                self.released += len(batch)
                self._holdings.changed.set()
                self._holdings.wake.set()
                self._host.on_released({shard: self._next_owner(shard) for shard in batch})

    async def _release(self, batch: Mapping[ShardId, int]) -> None:
        session = self._holdings.session
        try:
            work = self._storage.release(batch, self._incarnation)
            await store_call(self._supervisor, work, "release shards", RELEASE_DEADLINE)
        except PersistenceError as error:
            # The lock is freed nevertheless: the next owner's take overwrites these rows. If the release is still under
            # way in the store, it changes nothing after that take, because the epoch no longer matches.
            _log.warning("the store still names this runner as the owner of %d released shards: %s", len(batch), error)
        if session is not None:
            try:
                await session.unlock(list(batch))
            except SessionLost as error:
                _log.warning("the locks of %d released shards ended with the lock session: %s", len(batch), error)
