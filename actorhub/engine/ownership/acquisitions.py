"""How shards come: locked, waited for if their owner did not release them, taken in the store, granted to the host."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.ownership.former_owners import FormerOwners
from actorhub.engine.ownership.moves import Holdings, ShardHost
from actorhub.engine.ownership.session import GuardedSession
from actorhub.engine.supervision import Supervisor, store_call
from actorhub.storage.ports import NOBODY, SessionLost, Storage

_log: Final = get_logger("actorhub.ownership")

TAKE_DEADLINE: Final = 10.0
"""Seconds. A take may have to wait until the store ends a former owner that is stuck in a transaction (2 s)."""
_LARGEST_BATCH: Final = 2000
_SHRINK: Final = 8


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt to acquire shards."""

    session: GuardedSession
    """Has their locks, if it gets them."""
    info: RunnerInfo
    """This runner, as the store is to name it."""
    since: float
    """Monotonic seconds at which the shards became desired."""
    requested: int
    """How many retries had been requested when it began."""


class Acquisitions:
    """Locks desired shards, becomes their owner in the store, and grants them to the host.

    Args:
        holdings: What this runner holds.
        storage: Where a take is written.
        host: Told of granted shards.
        supervisor: Owns the tasks.
        clock: Source of time and jitter.
        former_owners: Tell when a shard may be taken that was not released.
        desired: Returns the shards that this runner should own now.
        give_back: Releases shards that were taken too late.
    """

    def __init__(
        self,
        *,
        holdings: Holdings,
        storage: Storage,
        host: ShardHost,
        supervisor: Supervisor,
        clock: Clock,
        former_owners: FormerOwners,
        desired: Callable[[], frozenset[ShardId]],
        give_back: Callable[[Mapping[ShardId, int]], None],
    ) -> None:
        self._holdings = holdings
        self._storage = storage
        self._host = host
        self._supervisor = supervisor
        self._clock = clock
        self._former_owners = former_owners
        self._desired = desired
        self._give_back = give_back
        self._batch = _LARGEST_BATCH
        self._backoff = Backoff(0.05, 1.0)
        self._failures = 0
        self._retries_requested = 0
        """Counts `retry`: an attempt compares it at its start and at its end."""
        self.takeovers = 0
        self.last_duration = 0.0

    def start(self, shards: Sequence[ShardId], info: RunnerInfo, since: float) -> None:
        """Begin to acquire `shards`, in batches.

        Args:
            shards: Neither owned nor being acquired or released.
            info: This runner, as the store is to name it.
            since: Monotonic seconds at which the shards became desired, for the statistics.
        """
        session = self._holdings.session
        if session is None:
            return
        for first in range(0, len(shards), self._batch):
            batch = shards[first : first + self._batch]
            self._holdings.acquiring.update(batch)
            attempt = _Attempt(session, info, since, self._retries_requested)
            _ = self._supervisor.spawn(self._acquire(attempt, batch), "acquire shards")

    def retry(self) -> None:
        """Try now the locks that are desired and not held; something suggests that some of them are free.

        An attempt that is under way may have asked for its locks just before they became free, and until it ends the
        balance loop leaves its shards alone. So each attempt that began before this call is followed by one more run of
        the balance loop. It is one, and not a run whenever some attempt ends: batches end one after the other, and if
        each end called for the others to be repeated, locks that a living peer holds would be tried without a pause, on
        the very session that must send the heartbeats.
        """
        self._retries_requested += 1
        self._holdings.wake.set()

    async def _acquire(self, attempt: _Attempt, shards: Sequence[ShardId]) -> None:
        session = attempt.session
        locked = shards
        epochs: Mapping[ShardId, int] = {}
        waiting: frozenset[ShardId] = frozenset()
        try:
            locked = await session.try_lock(shards)
            locked_at = self._clock.monotonic()
            if len(locked) < len(shards) and session.outlives_process:
                self._former_owners.end_the_dead(self.retry)
            locked = await self._still_desired(session, locked)
            if locked and self._holdings.may_act(session):
                epochs = await self._take(attempt, locked, NOBODY)
                waiting = await self._wait_for(attempt, [shard for shard in locked if shard not in epochs], locked_at)
        except SessionLost as error:
            _log.info("%d shards were not acquired, because the lock session ended: %s", len(shards), error)
        except PersistenceError as error:
            await self._on_take_failed(session, [shard for shard in locked if shard not in epochs], error)
        finally:
            self._end(attempt, [shard for shard in shards if shard not in waiting])

    async def _wait_for(self, attempt: _Attempt, shards: Sequence[ShardId], locked_at: float) -> frozenset[ShardId]:
        """Begin to wait for the former owners of locked shards that were not released, each apart; return the shards.

        They stay in `acquiring`. Those of the others are not held up.
        """
        if not shards:
            return frozenset()
        rows = await store_call(self._supervisor, self._storage.shards(), "list shards", TAKE_DEADLINE)
        wanted = frozenset(shards)
        tenures: dict[RunnerAddress | None, list[ShardOwner]] = {}
        for row in rows:
            if row.shard in wanted:
                tenure = row.owner or ShardOwner(row.shard, attempt.info.runner, row.epoch)
                tenures.setdefault(None if row.owner is None else tenure.runner, []).append(tenure)
        for former, theirs in tenures.items():
            work = self._succeed(attempt, former, theirs, locked_at)
            _ = self._supervisor.spawn(work, "succeed a former owner")
        return frozenset(tenure.shard for theirs in tenures.values() for tenure in theirs)

    async def _succeed(
        self, attempt: _Attempt, former: RunnerAddress | None, tenures: Sequence[ShardOwner], locked_at: float
    ) -> None:
        """Take locked shards once their former owner acts for them no longer; `None`: it has just released them."""
        session = attempt.session
        locked: Sequence[ShardId] = [tenure.shard for tenure in tenures]
        epochs: Mapping[ShardId, int] = {}

        def is_wanted() -> bool:
            return self._holdings.may_act(session) and not self._desired().isdisjoint(locked)

        try:
            is_gone = former is None or await self._former_owners.until_gone(
                former, tenures, locked_at=locked_at, is_wanted=is_wanted
            )
            locked = await self._still_desired(session, locked)
            if is_gone and locked and self._holdings.may_act(session):
                gone = {tenure.shard: tenure.epoch for tenure in tenures}
                epochs = await self._take(attempt, locked, gone)
                if len(epochs) < len(locked):
                    # The locks must have been lost meanwhile, unheard: else nobody could have written the rows.
                    raise PersistenceError(f"{len(locked) - len(epochs)} of them have another owner by now")
        except SessionLost as error:
            _log.info("%d shards were not acquired, because the lock session ended: %s", len(locked), error)
        except PersistenceError as error:
            await self._on_take_failed(session, [shard for shard in locked if shard not in epochs], error)
        finally:
            self._end(attempt, [tenure.shard for tenure in tenures])

    async def _still_desired(self, session: GuardedSession, locked: Sequence[ShardId]) -> Sequence[ShardId]:
        """Free the locks of those that are no longer desired; return the others.

        Placement may have changed while the locks were awaited. A lock that is kept without the shard being desired
        would never be freed: the balance loop releases only what is owned.
        """
        desired = self._desired()
        kept = [shard for shard in locked if shard in desired]
        if len(kept) < len(locked):
            await session.unlock(sorted(set(locked).difference(kept)))
        return kept

    async def _take(
        self, attempt: _Attempt, shards: Sequence[ShardId], gone: Mapping[ShardId, int]
    ) -> Mapping[ShardId, int]:
        """Become the owner of those of `shards` that the store allows, and grant them; return their epochs."""
        self._holdings.taking.update(shards)
        try:
            work = self._storage.take(shards, attempt.info, gone)
            epochs = await store_call(self._supervisor, work, "take shards", TAKE_DEADLINE)
        finally:
            self._holdings.taking.difference_update(shards)
        self._grant(attempt, epochs)
        return epochs

    def _end(self, attempt: _Attempt, shards: Sequence[ShardId]) -> None:
        """End an attempt, whatever came of it."""
        self._holdings.acquiring.difference_update(shards)
        self._holdings.changed.set()
        # With a new session the locks that this attempt got are gone, and the balance loop may have run already while
        # these shards still counted as being acquired.
        if attempt.requested != self._retries_requested or attempt.session is not self._holdings.session:
            self._holdings.wake.set()

    def _grant(self, attempt: _Attempt, epochs: Mapping[ShardId, int]) -> None:
        # A take can last seconds. If the lease ran out or the session was lost meanwhile, the store names this runner
        # as the owner of shards that it must not act for: it takes them again, at higher epochs, once it has a new
        # session.
        if not epochs or not self._holdings.may_act(attempt.session):
            return
        self._holdings.acquiring.difference_update(epochs)
        self._failures = 0
        self._batch = min(_LARGEST_BATCH, self._batch * _SHRINK)
        if self._holdings.leaving:
            self._give_back(epochs)
            return
        self._holdings.owned.update(epochs)
        self.takeovers += len(epochs)
        self.last_duration = self._clock.monotonic() - attempt.since
        self._host.on_granted(epochs)

    async def _on_take_failed(
        self, session: GuardedSession, locked: Sequence[ShardId], error: PersistenceError
    ) -> None:
        """Free the locks, so that another runner can try, and retry soon in smaller batches.

        One shard whose former owner is stuck in a transaction fails the take of its whole batch. Smaller batches keep
        it from holding up the others.
        """
        self._failures += 1
        self._batch = max(1, min(self._batch, len(locked)) // _SHRINK)
        delay = self._backoff.delay(self._failures, self._clock.random())
        _log.warning("could not take %d shards, next attempt in %.3g s: %s", len(locked), delay, error)
        # `retry`, because freeing the locks below may last longer than the delay: until then the shards count as being
        # acquired, and a plain run of the balance loop would pass them over.
        asyncio.get_running_loop().call_later(delay, self.retry)
        try:
            await session.unlock(locked)
        except SessionLost as lost:
            _log.info("the locks of %d shards ended with the lock session: %s", len(locked), lost)
