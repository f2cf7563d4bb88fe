"""Shard ownership of a runner: it acts for a shard only while lock, lease and epoch all say so.

Three actors share one state (`Holdings`): the heartbeat loop keeps session and lease alive and reads the runner table,
the watchdog fences when the lease runs out, and the balance loop compares wishes with what is owned, again and again,
and starts acquisitions and hand-overs. Nothing else decides, so a step that failed half-way is simply seen again.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.engine.ownership.lease import NEVER, GuardedSession, Watchdog, open_session, store_call
from actorhub.engine.ownership.members import Membership
from actorhub.engine.ownership.moves import SLOW_DRAIN, Acquisitions, HandOvers, Holdings, ShardHost, ShardState
from actorhub.engine.ownership.plan import decide
from actorhub.engine.supervision import Supervisor, set_or_time
from actorhub.storage.ports import LEASE, LiveRunner, SessionLost, Storage

_log: Final = logging.getLogger("actorhub.ownership")

_LEASE: Final = LEASE.total_seconds()
_LOOK_AT_SESSION: Final = 0.1
"""Seconds between looks at whether the session's connection broke: cheaper than to wait for the next heartbeat."""
_SHORTEST_INTERVAL: Final = 0.02
"""Seconds that heartbeats are apart, however many peers ask for a look at the runner table."""
_DRAINS_AT_ONCE: Final = 16
"""Shards that are handed over at a time, or a sixty-fourth of those owned where that is more."""
_DRAINS_AT_LEAVE: Final = 32


@dataclass(frozen=True, slots=True)
class OwnershipStatistics:
    """Where a runner's ownership stands, and what happened since it started."""

    shards_owned: int
    shards_acquiring: int
    shards_draining: int
    takeovers: int
    """Shards that were granted."""
    last_takeover_seconds: float
    """From the wish, or the suspicion that led to it, to the last grant."""
    releases: int
    """Shards that were let go gracefully."""
    sessions_opened: int
    sessions_lost: int
    self_fenced: int
    """How often the lease ran out."""
    members: int
    suspects: int
    registered: int
    """Runners in the table, silent ones included."""


class Ownership:
    """Owns this runner's shards, from `start` to `leave`."""

    fresh_until: float
    """Until when (monotonic seconds) this runner may act for its shards; read it before each start and commit."""

    def __init__(
        self,
        *,
        storage: Storage,
        clock: Clock,
        info: RunnerInfo,
        shards_per_group: int,
        host: ShardHost,
        supervisor: Supervisor,
        handover_grace: float = 10.0,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            storage: Opened already.
            clock: Source of time and jitter.
            info: What this runner says of itself; its incarnation is that of this start.
            shards_per_group: The value that the cluster agreed on.
            host: What acts for the owned shards.
            supervisor: Owns the loops.
            handover_grace: Seconds that running handlers get when a shard moves to another runner.
        """
        self.fresh_until = NEVER
        self._storage = storage
        self._clock = clock
        self._info = info
        self._host = host
        self._supervisor = supervisor
        self._handover_grace = handover_grace
        self._wake = asyncio.Event()
        self._holdings = Holdings(clock)
        self._handovers = HandOvers(
            holdings=self._holdings,
            storage=storage,
            host=host,
            supervisor=supervisor,
            clock=clock,
            incarnation=self.incarnation,
            next_owner=self.next_owner,
            again=self._wake.set,
        )
        self._acquisitions = Acquisitions(
            holdings=self._holdings,
            storage=storage,
            host=host,
            supervisor=supervisor,
            clock=clock,
            wanted=self._wanted,
            give_back=self._handovers.give_back,
            again=self._look_again,
        )
        self._watchdog: Watchdog | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._beat_now = asyncio.Event()
        self._membership = Membership(
            storage=storage,
            supervisor=supervisor,
            clock=clock,
            shards_per_group=shards_per_group,
            again=self._look_again,
        )
        self._last_sent = NEVER
        self._drain_deadline: float | None = None
        self._drains_waiting = 0
        self._left = False
        self._sessions_opened = self._sessions_lost = self._self_fenced = 0

    @property
    def incarnation(self) -> str:
        """This start of this runner."""
        return self._info.runner.incarnation

    @property
    def owned(self) -> Mapping[ShardId, int]:
        """Epochs of the shards that this runner may act for while the lease is fresh; draining ones included."""
        return self._holdings.owned

    @property
    def members(self) -> Sequence[LiveRunner]:
        """The runners that were alive at the last look at the runner table, this one included."""
        return self._membership.living

    def epoch(self, shard: ShardId) -> int | None:
        """Return the epoch at which `shard` is owned; `None` if it is not."""
        return self._holdings.owned.get(shard)

    def is_fresh(self) -> bool:
        """Return whether the last acknowledged heartbeat was sent less than the lease ago."""
        return self._clock.monotonic() < self.fresh_until

    def state(self, shard: ShardId) -> ShardState:
        """Return how this runner stands to `shard`."""
        return self._holdings.state(shard)

    def next_owner(self, shard: ShardId) -> RunnerAddress | None:
        """Return the other runner that should own `shard` as far as is known; `None`: this one, or nobody."""
        owner = self._membership.last_wishes.next_owner.get(shard)
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
        """Try the locks of a peer whose stream broke, at once and again until it is gone or proves alive.

        The lock decides: a peer that lives keeps its shards, whatever anybody thinks of it.
        """
        if incarnation == self.incarnation:
            return
        self._membership.suspects.add(incarnation, self._clock.monotonic())
        self._look_again()

    def trust(self, incarnation: str) -> None:
        """End the suspicion of a peer that was reached again."""
        if self._membership.suspects.trust(incarnation):
            self._wake.set()

    def nudge(self, shards: Iterable[ShardId]) -> None:
        """Try the locks of shards that a peer released, should they be ours, by a runner table read anew."""
        if any(shard.group in self._info.groups for shard in shards):
            self._look_again()
            self._beat_now.set()

    def refresh(self) -> None:
        """Read the runner table now instead of at the next heartbeat: a peer just appeared or disappeared."""
        self._beat_now.set()

    def mistrust(self, shard: ShardId) -> None:
        """Give up a shard for which the store refused a commit, and acquire it anew if it still is ours."""
        epoch = self._holdings.owned.get(shard)
        if epoch is None:
            return
        del self._holdings.owned[shard]
        self._host.revoked((shard,), "the store refused its epoch")
        if shard not in self._holdings.releasing:
            self._handovers.give_back({shard: epoch})

    async def start(self) -> None:
        """Register, open the first session, and return after the first attempt at all wished shards.

        Raises:
            ConfigurationError: a living runner has this address.
            PersistenceError: the store failed.
        """
        self._watchdog = Watchdog(self._clock, self._lease_expired)
        try:
            await self._membership.replace_namesakes(self._info)
            await self._open_session()
            await self._beat()
            self._loops = [
                self._supervisor.loop("ownership: heartbeat", self._keep_beating, Backoff(0.05, 1.0)),
                self._supervisor.loop("ownership: balance", self._keep_balancing, Backoff(0.05, 1.0)),
            ]
            self._balance()
            await self._until_settled()
        except SessionLost as error:
            self._stop("its start failed")
            raise PersistenceError(f"the first lock session was lost at once: {error}") from error
        except BaseException:
            self._stop("its start failed")
            raise

    async def leave(self, grace: float) -> None:
        """Hand over every shard and deregister, within `grace` seconds; what is left then is fenced, not waited for.

        Cancellation fences at once. Can be called twice.
        """
        if self._left:
            return
        reserve = min(0.5, grace / 4)
        self._drain_deadline = self._clock.monotonic() + grace - reserve
        self._info = msgspec.structs.replace(self._info, draining=True)
        try:
            async with asyncio.timeout(max(0.0, grace - reserve)):
                await self._hand_over_everything()
            reason = "this runner has left"
        except TimeoutError:
            reason = "the grace time of shutdown is over"
        except BaseException:
            self._stop("its shutdown was cancelled")
            raise
        session = self._holdings.session
        self._stop(reason)
        await self._deregister(session, reserve)

    async def _hand_over_everything(self) -> None:
        if self._holdings.session is not None and self.is_fresh():
            try:
                # Peers that are told of a release must find in the table that this runner does not want it back.
                await self._beat()
            except (PersistenceError, SessionLost) as error:
                _log.warning("leaving without announcing it: %s", error)
        self._holdings.leaving = True
        self._wake.set()
        await self._until_settled(empty=True)

    async def _deregister(self, session: GuardedSession | None, reserve: float) -> None:
        if session is not None:
            await session.aclose()
        work = self._storage.remove_runner(self.incarnation)
        try:
            await store_call(self._supervisor, work, "remove runner", max(reserve / 2, 0.1))
        except PersistenceError as error:
            _log.warning("peers remove this runner's row later: %s", error)

    def _stop(self, reason: str) -> None:
        self._left = True
        for task in self._loops:
            task.cancel()
        self._fence(reason)

    async def _until_settled(self, *, empty: bool = False) -> None:
        """Wait until no acquisition is under way, and if `empty`, until nothing is held or being released either."""
        held = self._holdings
        while held.acquiring or (empty and (held.owned or held.releasing)):
            held.changed.clear()
            await held.changed.wait()

    async def _open_session(self) -> None:
        raw = await open_session(
            self._storage, self.incarnation, supervisor=self._supervisor, again=self._sessions_opened > 0
        )
        self._sessions_opened += 1
        self._holdings.session = GuardedSession(
            raw, supervisor=self._supervisor, clock=self._clock, lost=self._session_lost
        )
        if self._last_sent != NEVER:
            self._membership.forgive(self._clock.monotonic() - self._last_sent)

    async def _keep_beating(self) -> None:
        while True:
            if self._holdings.session is None:
                await self._open_session()
            await self._beat()
            await self._rest()

    async def _beat(self) -> None:
        session = self._holdings.session
        if session is None:
            return
        sent, rows = await session.heartbeat(self._info)
        if session is not self._holdings.session:
            return
        self._last_sent = max(sent, self._last_sent)
        self.fresh_until = self._holdings.fresh_until = self._last_sent + _LEASE
        if self._watchdog is not None:
            self._watchdog.arm(self.fresh_until)
        slot = next((row.info.slot for row in rows if row.info.runner == self._info.runner), self._info.slot)
        if slot != self._info.slot:
            self._info = msgspec.structs.replace(self._info, slot=slot)
        if self._membership.observe(rows, self._info):
            self._host.members_changed(self._membership.living)
        self._wake.set()

    async def _rest(self) -> None:
        """Wait for the next heartbeat's time, or for a reason to send it now."""
        if self._holdings.session is not None:
            await asyncio.sleep(_SHORTEST_INTERVAL)
        until = self._last_sent + self._membership.interval()
        while not self._beat_now.is_set() and (left := until - self._clock.monotonic()) > 0:
            if self._holdings.session is not None:
                self._holdings.session.check()
            await set_or_time(self._beat_now, min(left, _LOOK_AT_SESSION))
        self._beat_now.clear()

    async def _keep_balancing(self) -> None:
        while True:
            self._wake.clear()
            await set_or_time(self._wake, self._balance())

    def _balance(self) -> float | None:
        """Start what the wishes demand; return after how many seconds to look again without being woken."""
        held, now = self._holdings, self._clock.monotonic()
        if held.session is None or now >= self.fresh_until:
            return None
        limit = max(_DRAINS_AT_LEAVE if held.leaving else _DRAINS_AT_ONCE, len(held.owned) // 64)
        plan = decide(
            owned=held.owned,
            busy=held.busy(),
            wanted=self._wanted(),
            given_away=self._given_away(),
            places=limit - self._handovers.active(),
        )
        self._acquisitions.start(plan.acquire, self._info, self._membership.suspects.since(now))
        self._handovers.start(plan.release, self._grace(now))
        self._membership.suspects.tried(now)
        pauses = [SLOW_DRAIN] if plan.waiting else []
        if (next_try := self._membership.suspects.next_try()) is not None:
            pauses.append(max(0.0, next_try - now))
        return min(pauses, default=None)

    def _wanted(self) -> frozenset[ShardId]:
        if self._holdings.leaving:
            return frozenset()
        return self._membership.wishes(self._info).mine

    def _given_away(self) -> frozenset[ShardId]:
        wishes, owned = self._membership.wishes(self._info), self._holdings.owned
        if self._holdings.leaving:
            return frozenset(owned)
        return wishes.given_away(owned.keys(), self._membership.receptive())

    def _grace(self, now: float) -> float:
        return self._handover_grace if self._drain_deadline is None else max(0.0, self._drain_deadline - now)

    def _look_again(self) -> None:
        self._acquisitions.heard()
        self._wake.set()

    def _session_lost(self, session: GuardedSession, reason: str) -> None:
        if session is self._holdings.session:
            self._sessions_lost += 1
            self._fence(f"the lock session is lost: {reason}")

    def _lease_expired(self) -> None:
        self._self_fenced += 1
        self._fence("the lease ran out: no heartbeat was acknowledged in time")

    def _fence(self, reason: str) -> None:
        """Let go of everything now: nothing of it may run any more when this returns."""
        held = self._holdings
        shards, session = tuple(held.owned), held.session
        held.owned.clear()
        held.session = None
        self.fresh_until = held.fresh_until = NEVER
        try:
            if shards:
                self._host.revoked(shards, reason)
        finally:
            if shards:
                _log.warning("let go of %d shards at once: %s", len(shards), reason)
            if self._watchdog is not None:
                self._watchdog.disarm()
            self._handovers.cancel()
            if session is not None:
                session.abandon()
            held.changed.set()
            self._beat_now.set()
