"""Shard ownership of a runner. It may act for a shard only while lock, lease and epoch all say so.

- The *lock* of the shard is held by this runner's lock session. Two runners never hold it at once.
- The *lease* is fresh: the last acknowledged heartbeat was sent less than 2.5 s ago. Without it, a runner that is cut
  off from the store would go on running handlers after Postgres has given its locks to somebody else.
- The *epoch* in the store is the one at which this runner took the shard. Lock and lease keep two runners from running;
  only the epoch, which each commit checks behind its fence, keeps a former owner from committing.

Three actors share one state (`Holdings`). The heartbeat loop keeps session and lease alive and reads the runner table.
The watchdog fences this runner when the lease runs out. The balance loop compares the desired shards with the owned
ones and starts acquisitions and hand-overs. It is level-triggered: it goes by what is the case now, not by what has
happened. So a step that failed half-way needs no repair; the next comparison finds the difference again.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.model.lease import NEVER, Lease
from actorhub.engine.ownership.acquisitions import Acquisitions
from actorhub.engine.ownership.former_owners import FormerOwners, StoreTime
from actorhub.engine.ownership.members import Membership
from actorhub.engine.ownership.moves import SLOW_DRAIN, HandOvers, Holdings, ShardHost, ShardState
from actorhub.engine.ownership.plan import decide
from actorhub.engine.ownership.session import GuardedSession, Watchdog, open_session
from actorhub.engine.ownership.statistics import OwnershipStatistics
from actorhub.engine.supervision import Supervisor, set_or_time, store_call
from actorhub.storage.ports import LEASE, LiveRunner, SessionLost, Storage

_log: Final = get_logger("actorhub.ownership")

_LEASE: Final = LEASE.total_seconds()
_SESSION_CHECK: Final = 0.1
"""Seconds between checks of whether the session's connection broke. Without them only the next heartbeat would notice,
when peers may already own the shards."""
_SHORTEST_INTERVAL: Final = 0.02
"""Seconds between heartbeats, at the least, however many peers give a reason to read the runner table."""
_PREPARE_DEADLINE: Final = 10.0
_DRAINS_AT_ONCE: Final = 16
"""Shards that are handed over at a time, or one sixty-fourth of the owned ones if that is more."""
_DRAINS_AT_LEAVE: Final = 32


class Ownership:
    """Acquires, keeps and hands over this runner's shards, from `start` to `leave`."""

    def __init__(
        self,
        *,
        storage: Storage,
        clock: Clock,
        info: RunnerInfo,
        shards_per_group: int,
        lease: Lease,
        host: ShardHost,
        supervisor: Supervisor,
        handover_grace: float = 10.0,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            storage: Opened already.
            clock: Source of time and jitter.
            info: What this runner declares about itself; its incarnation is the one of this start.
            shards_per_group: The value that the cluster agreed on.
            lease: Tells everybody else until when this runner may act for its shards.
            host: Acts for the owned shards, and asks about former owners.
            supervisor: Owns the loops.
            handover_grace: Seconds that running handlers get to finish when a shard moves to another runner.
        """
        self._lease = lease
        self._storage = storage
        self._clock = clock
        self._info = info
        self._host = host
        self._supervisor = supervisor
        self._handover_grace = handover_grace
        self._holdings = Holdings(lease)
        self._handovers = HandOvers(
            holdings=self._holdings,
            storage=storage,
            host=host,
            supervisor=supervisor,
            clock=clock,
            incarnation=self.incarnation,
            next_owner=self.next_owner,
        )
        self._store_time = StoreTime()
        self._former_owners = FormerOwners(
            storage=storage,
            supervisor=supervisor,
            clock=clock,
            store_time=self._store_time,
            neighbours=host,
            suspects=self._suspects,
        )
        self._acquisitions = Acquisitions(
            holdings=self._holdings,
            storage=storage,
            host=host,
            supervisor=supervisor,
            clock=clock,
            former_owners=self._former_owners,
            desired=self._desired,
            give_back=self._handovers.give_back,
        )
        self._watchdog: Watchdog | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._beat_now = asyncio.Event()
        self._membership = Membership(
            storage=storage,
            supervisor=supervisor,
            clock=clock,
            shards_per_group=shards_per_group,
            rebalance=self._acquisitions.retry,
        )
        self._last_sent = NEVER
        self._drain_deadline: float | None = None
        self._left = False
        self._sessions_opened = self._sessions_lost = self._self_fenced = 0

    @property
    def incarnation(self) -> str:
        """Identifies this start of this runner."""
        return self._info.runner.incarnation

    @property
    def owned(self) -> Mapping[ShardId, int]:
        """Epochs of the shards that this runner may act for while the lease is fresh, draining ones included."""
        return self._holdings.owned

    @property
    def members(self) -> Sequence[LiveRunner]:
        """The runners that were alive when the runner table was last read, this one included."""
        return self._membership.living

    def epoch(self, shard: ShardId) -> int | None:
        """Return the epoch at which `shard` is owned; `None` if it is not."""
        return self._holdings.owned.get(shard)

    def is_fresh(self) -> bool:
        """Return whether the last acknowledged heartbeat was sent less than the lease ago."""
        return self._lease.is_fresh()

    def state(self, shard: ShardId) -> ShardState:
        """Return what `shard` is to this runner at the moment."""
        return self._holdings.state(shard)

    def next_owner(self, shard: ShardId) -> RunnerAddress | None:
        """Return the other runner that should own `shard`; `None` if that is this one, or not known."""
        owner = self._membership.last_desired.next_owner.get(shard)
        return None if owner == self._info.runner else owner

    def statistics(self) -> OwnershipStatistics:
        """Return the counters as they are now."""
        return OwnershipStatistics(
            shards_owned=len(self._holdings.owned),
            shards_acquiring=len(self._holdings.acquiring),
            shards_draining=len(self._holdings.releasing),
            takeovers=self._acquisitions.takeovers,
            last_takeover_seconds=self._acquisitions.last_duration,
            releases=self._handovers.released,
            sessions_opened=self._sessions_opened,
            sessions_lost=self._sessions_lost,
            self_fenced=self._self_fenced,
            members=len(self._membership.living),
            suspects=len(self._membership.suspects.incarnations),
            registered=self._membership.registered,
        )

    def suspect(self, incarnation: str) -> None:
        """Try the locks of a peer whose link broke, now and at short intervals, until it is gone or proves alive.

        A broken link is the fastest sign of a dead runner, and a weak one: the link may have broken for another reason.
        Trying is safe nevertheless, because the lock decides. A peer that lives keeps its shards.
        """
        if incarnation == self.incarnation:
            return
        self._membership.read_all()
        self._membership.suspects.add(incarnation, self._clock.monotonic())
        self._acquisitions.retry()

    def trust(self, incarnation: str) -> None:
        """End the suspicion of a peer that there is a link to again."""
        if self._membership.suspects.trust(incarnation):
            self._holdings.wake.set()

    def nudge(self, shards: Iterable[ShardId]) -> None:
        """Try the locks of shards that a peer has just released, if they are ours.

        Whether they are ours may depend on something that this runner has not read yet, such as that the peer is
        leaving. So the runner table is read as well; a heartbeat does that.
        """
        if any(shard.group in self._info.groups for shard in shards):
            self._acquisitions.retry()
            self.refresh()

    def refresh(self) -> None:
        """Read the runner table now instead of at the next heartbeat, because a peer appeared or disappeared."""
        self._membership.read_all()
        self._beat_now.set()

    def mistrust(self, shard: ShardId) -> None:
        """Give up a shard for which the store refused a commit, and acquire it again if it is still desired.

        Perhaps another runner has taken the shard and this one has not noticed yet. None of it runs when this
        returns; the locks and the store then tell whether it is still ours.
        """
        epoch = self._holdings.owned.get(shard)
        if epoch is None:
            return
        del self._holdings.owned[shard]
        self._host.on_revoked((shard,), "the store refused its epoch")
        if shard not in self._holdings.releasing:
            self._handovers.give_back({shard: epoch})

    def let_everything_go(self, reason: str) -> None:
        """Let go of everything at once, the lock session too; a new one will acquire what is desired then."""
        if not self._left:
            self._fence(reason)

    async def let_go(self, tenures: Sequence[ShardOwner], peer: str) -> bool:
        """Act for none of `tenures` when this returns `True`. It returns `False` if the store does not know the peer.

        A peer that has the lock of a shard which this runner owns shows that the lock session of this one has ended.
        """
        if not await self._membership.is_registered(peer):
            return False
        held = self._holdings
        if any(held.owned.get(one.shard) == one.epoch or one.shard in held.taking for one in tenures):
            self._fence(f"runner {peer[:6]} has locks that the lock session of this one had")
        return True

    async def start(self) -> None:
        """Register, open the first lock session, and return once all desired shards have been tried.

        Raises:
            ConfigurationError: Another living runner has this address.
            PersistenceError: The store failed.
        """
        # The first heartbeat registers this runner and reads who else there is. Balancing starts after that: with an
        # empty table, this runner would desire every shard and try to take those of its peers.
        self._watchdog = Watchdog(self._clock, self._on_lease_expired)
        try:
            await self._membership.replace_namesakes(self._info)
            await self._open_session()
            await self._beat()
            self._loops = [
                self._supervisor.loop("ownership: heartbeat", self._run_heartbeat, Backoff(0.05, 1.0)),
                self._supervisor.loop("ownership: balance", self._run_balance, Backoff(0.05, 1.0)),
            ]
            self._balance()
            await self._until_settled()
        except SessionLost as error:
            self._stop("its start failed")
            raise PersistenceError(f"the lock session was lost while this runner started: {error}") from error
        except BaseException:
            self._stop("its start failed")
            raise

    async def leave(self, grace: float) -> None:
        """Hand over every shard and deregister, within `grace` seconds. Shards that are left by then are revoked.

        A store that is slow to take back that runs which are cut short count makes it up to two seconds longer.
        On cancellation all shards are revoked at once. Calling it again does nothing.
        """
        if self._left:
            return
        # Kept back for deregistering, so that peers learn of the end even if the hand-over uses up its time. Drains end
        # a little earlier, so that what they cut off is named, and their shards are released like all others.
        reserve = min(0.5, grace / 4)
        self._drain_deadline = self._clock.monotonic() + grace - 2 * reserve
        self._handovers.hasten(max(0.0, grace - 2 * reserve))
        self._info = msgspec.structs.replace(self._info, draining=True)
        try:
            reason = await self._hand_over_within(max(0.0, grace - reserve))
        except BaseException:
            self._stop("its shutdown was cancelled")
            raise
        # Fencing gives the session up and closes it in the background; deregistering waits for that, so that the locks
        # are free when the row is gone and peers act on it.
        session = self._holdings.session
        self._stop(reason)
        await self._deregister(session, reserve)

    async def _hand_over_within(self, seconds: float) -> str:
        """Hand over every shard; return why what is left is revoked now."""
        try:
            async with asyncio.timeout(seconds):
                await self._hand_over_everything()
        except TimeoutError:
            if self.is_fresh():
                await self._host.spare(tuple(self._holdings.owned))
            return "the grace time of the shutdown is over"
        return "this runner has left"

    async def _hand_over_everything(self) -> None:
        if self._holdings.session is not None and self.is_fresh():
            try:
                # This heartbeat writes `draining` into this runner's row. It must be there before the first release: a
                # peer that is told of a release goes by the runner table, and without it placement would still give the
                # shard to this runner, so nobody would take it.
                await self._beat()
            except (PersistenceError, SessionLost) as error:
                _log.warning("the store could not be told that this runner is leaving: %s", error)
        self._holdings.leaving = True
        self._holdings.wake.set()
        await self._until_settled(empty=True)

    async def _deregister(self, session: GuardedSession | None, reserve: float) -> None:
        if session is not None:
            await session.aclose()
        work = self._storage.remove_runner(self.incarnation)
        try:
            await store_call(self._supervisor, work, "remove runner", max(reserve / 2, 0.1))
        except PersistenceError as error:
            _log.warning("this runner's row could not be removed, its peers will do it: %s", error)

    def _stop(self, reason: str) -> None:
        self._left = True
        for task in self._loops:
            self._supervisor.end(task)
        self._fence(reason)

    async def _until_settled(self, *, empty: bool = False) -> None:
        """Wait until no acquisition is under way; with `empty`, also until nothing is owned or being released."""
        held = self._holdings
        while held.acquiring or (empty and (held.owned or held.releasing)):
            held.changed.clear()
            await held.changed.wait()

    async def _open_session(self) -> None:
        # Before there is a session, which would be ended if this took long.
        await store_call(self._supervisor, self._host.prepare(), "prepare for a lock session", _PREPARE_DEADLINE)
        raw = await open_session(
            self._storage, self.incarnation, supervisor=self._supervisor, again=self._sessions_opened > 0
        )
        if not self._host.is_prepared():
            _ = self._supervisor.spawn(raw.aclose(), "lock session: close")
            raise PersistenceError("another era of the database began: the lock session is opened again in a moment")
        self._sessions_opened += 1
        self._membership.read_all()
        self._holdings.session = GuardedSession(
            raw, supervisor=self._supervisor, clock=self._clock, on_lost=self._on_session_lost
        )
        if self._last_sent != NEVER:
            # This runner has been without a session since then, and perhaps nobody had one.
            self._membership.forgive(self._clock.monotonic() - self._last_sent)

    async def _run_heartbeat(self) -> None:
        while True:
            if self._holdings.session is None:
                await self._open_session()
            await self._beat()
            await self._rest()

    async def _beat(self) -> None:
        session = self._holdings.session
        if session is None:
            return
        asked = self._membership.next_slice()
        sent, rows = await session.heartbeat(self._info, asked)
        self._store_time.observe(rows, sent, self._clock.monotonic())
        if rows:
            self._host.observe_time(rows[0].read_at)
        if session is not self._holdings.session:
            # While the answer was on its way, the watchdog fenced this runner. An answer that comes too late must not
            # make the lease fresh again: the shards have been revoked, and the session has been given up.
            return
        # The lease first: whatever follows from the runner table may start work that checks it.
        self._last_sent = max(sent, self._last_sent)
        self._lease.fresh_until = self._last_sent + _LEASE
        if self._watchdog is not None:
            self._watchdog.arm(self._lease.fresh_until)
        slot = next((row.info.slot for row in rows if row.info.runner == self._info.runner), self._info.slot)
        if slot != self._info.slot:
            self._info = msgspec.structs.replace(self._info, slot=slot)
        if self._membership.observe(rows, asked, self._info):
            self._host.on_members_changed(self._membership.living)
        self._holdings.wake.set()

    async def _rest(self) -> None:
        """Wait until the next heartbeat is due, or until there is a reason to send it now."""
        if self._holdings.session is not None:
            await asyncio.sleep(_SHORTEST_INTERVAL)
        until = self._last_sent + self._membership.interval()
        while not self._beat_now.is_set() and (left := until - self._clock.monotonic()) > 0:
            if self._holdings.session is not None:
                self._holdings.session.check()
            await set_or_time(self._beat_now, min(left, _SESSION_CHECK))
        self._beat_now.clear()

    async def _run_balance(self) -> None:
        while True:
            # Cleared before the comparison: what changes during or after it sets the event again and is not missed.
            self._holdings.wake.clear()
            await set_or_time(self._holdings.wake, self._balance())

    def _balance(self) -> float | None:
        """Start the acquisitions and hand-overs that are due; return the seconds until there may be more to do."""
        held, now = self._holdings, self._clock.monotonic()
        if held.session is None or now >= self._lease.fresh_until:
            return None  # nothing may be acquired or handed over now; the next heartbeat wakes this loop
        limit = max(_DRAINS_AT_LEAVE if held.leaving else _DRAINS_AT_ONCE, len(held.owned) // 64)
        plan = decide(
            owned=held.owned,
            busy=held.busy(),
            desired=self._desired(),
            given_away=self._given_away(),
            places=limit - self._handovers.active(),
        )
        # Each of these notes its shards in `held` before it returns, so the next run of this loop leaves them alone.
        self._acquisitions.start(plan.acquire, self._info, self._membership.suspects.since(now))
        self._handovers.start(plan.release, self._grace(now))
        self._membership.suspects.on_tried(now)
        # A drain that becomes slow frees its place without an event, and suspects are tried by the clock.
        pauses = [SLOW_DRAIN] if plan.waiting else []
        if (next_try := self._membership.suspects.next_try()) is not None:
            pauses.append(max(0.0, next_try - now))
        return min(pauses, default=None)

    def _desired(self) -> frozenset[ShardId]:
        if self._holdings.leaving:
            return frozenset()
        return self._membership.desired(self._info).mine

    def _suspects(self) -> Sequence[RunnerAddress]:
        return self._membership.suspected()

    def _given_away(self) -> frozenset[ShardId]:
        desired, owned = self._membership.desired(self._info), self._holdings.owned
        if self._holdings.leaving:
            return frozenset(owned)
        if owned.keys() <= desired.mine:
            return frozenset()
        return desired.given_away(owned.keys(), self._membership.receptive())

    def _grace(self, now: float) -> float:
        return self._handover_grace if self._drain_deadline is None else max(0.0, self._drain_deadline - now)

    def _on_session_lost(self, session: GuardedSession, reason: str) -> None:
        # A session that was given up may still report its loss, when this runner already has the next one.
        if session is self._holdings.session:
            self._sessions_lost += 1
            self._fence(f"the lock session is lost: {reason}")

    def _on_lease_expired(self) -> None:
        self._self_fenced += 1
        self._fence("the lease ran out, because no heartbeat was acknowledged in time")

    def _fence(self, reason: str) -> None:
        """Let go of everything. Synchronous: when this returns, no handler of these shards runs or will be started.

        The state is changed first, so that whatever `on_revoked` calls sees a runner that owns nothing. Everything
        after that happens even if the host fails, above all giving up the session: its locks let the next owners begin.
        """
        held = self._holdings
        shards, session = tuple(held.owned), held.session
        held.owned.clear()
        held.session = None
        self._lease.fresh_until = NEVER
        if shards:
            _log.warning("let go of %d shards at once: %s", len(shards), reason)
        try:
            if shards:
                self._host.on_revoked(shards, reason)
        finally:
            if self._watchdog is not None:
                self._watchdog.disarm()
            self._handovers.cancel()
            if session is not None:
                session.abandon()
            held.changed.set()
            self._beat_now.set()
