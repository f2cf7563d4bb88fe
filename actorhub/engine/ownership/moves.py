"""How shards come and go: acquisitions (lock, take, grant) and hand-overs (drain, release, unlock, tell)."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError, ShuttingDown
from actorhub.engine.ownership.lease import NEVER, GuardedSession, store_call
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import LiveRunner, SessionLost, Storage

_log: Final = logging.getLogger("actorhub.ownership")

TAKE_DEADLINE: Final = 10.0
"""Longer than the store needs to end a former owner that sits in a transaction."""
RELEASE_DEADLINE: Final = 2.0
DRAIN_MARGIN: Final = 1.0
"""Seconds that a drain may exceed its grace before the shard is revoked."""
SLOW_DRAIN: Final = 0.5
"""A drain that lasts longer than this many seconds gives its place to another shard."""
_LARGEST_BATCH: Final = 2000
_SHRINK: Final = 8

ShardState = Literal["owned", "acquiring", "draining", "unowned"]


class ShardHost(Protocol):
    """What acts for the owned shards. Its synchronous methods must neither block nor raise."""

    def granted(self, shards: Mapping[ShardId, int]) -> None:
        """Serve these shards from now on, at these epochs."""
        ...

    def revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Drop these shards now: stop intake, cancel what runs, forget their state. They are lost already."""
        ...

    async def drain(self, shard: ShardId, grace: float) -> None:
        """Start no handler any more, finish the running ones within `grace` seconds, passivate.

        When it returns, nothing of the shard runs or will commit. `revoked` while it waits makes it return.
        """
        ...

    def members_changed(self, runners: Sequence[LiveRunner]) -> None:
        """Learn which runners are alive, this one included."""
        ...

    def released(self, shards: Mapping[ShardId, RunnerAddress | None]) -> None:
        """Learn that drained shards are free to be taken, and by whom (`None`: nobody is there).

        A shard whose drain overran its grace was `revoked` before.
        """
        ...


class Holdings:
    """Every mutable fact about what this runner holds; changed without an `await` between check and act.

    A shard is in `releasing` from the start of its drain until its lock is free, in `owned` as long as something of it
    may run, and never in `acquiring` and one of the others at once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.owned: dict[ShardId, int] = {}
        self.acquiring: set[ShardId] = set()
        self.releasing: dict[ShardId, float] = {}
        """When its release began."""
        self.session: GuardedSession | None = None
        self.fresh_until = NEVER
        self.leaving = False
        self.changed = asyncio.Event()
        """Set whenever a shard came, went or was given up."""

    def may_act(self, session: GuardedSession) -> bool:
        """Whether `session` still is the session, and the lease fresh."""
        return session is self.session and self._clock.monotonic() < self.fresh_until

    def state(self, shard: ShardId) -> ShardState:
        """Return how this runner stands to `shard`."""
        if shard in self.releasing:
            return "draining"
        if shard in self.owned:
            return "owned"
        return "acquiring" if shard in self.acquiring else "unowned"

    def busy(self) -> set[ShardId]:
        """Return the shards that must be left alone until their move has ended."""
        return self.acquiring | self.releasing.keys()


class HandOvers:
    """Lets go of shards one by one, releases those that are drained together, and tells the host who is next."""

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
        again: Callable[[], None],
    ) -> None:
        self._holdings = holdings
        self._storage = storage
        self._host = host
        self._supervisor = supervisor
        self._clock = clock
        self._incarnation = incarnation
        self._next_owner = next_owner
        self._again = again
        self._drains: dict[ShardId, asyncio.Task[None]] = {}
        self._drained: dict[ShardId, int] = {}
        self._flush: asyncio.Task[None] | None = None
        self.released = 0

    def active(self) -> int:
        """Return how many drains occupy a place: slow ones do not, so that they hold up nobody."""
        recent = self._clock.monotonic() - SLOW_DRAIN
        return sum(1 for shard in self._drains if self._holdings.releasing.get(shard, NEVER) > recent)

    def start(self, shards: Iterable[ShardId], grace: float) -> None:
        """Begin to hand over owned shards whose drain may take `grace` seconds."""
        session = self._holdings.session
        if session is None:
            return
        for shard in shards:
            self._holdings.releasing[shard] = self._clock.monotonic()
            work = self._drain(session, shard, self._holdings.owned[shard], grace)
            self._drains[shard] = self._supervisor.spawn(work, "hand over shard")

    def give_back(self, shards: Mapping[ShardId, int]) -> None:
        """Release shards at these epochs for which nothing runs."""
        for shard in shards:
            self._holdings.releasing.setdefault(shard, self._clock.monotonic())
        self._drained.update(shards)
        if self._flush is not None and not self._flush.done():
            return
        try:
            self._flush = self._supervisor.spawn(self._release_drained(), "release shards")
        except ShuttingDown:
            # Nothing new starts any more: the locks end with their session.
            for shard in shards:
                self._holdings.releasing.pop(shard, None)

    def cancel(self) -> None:
        """Stop waiting for drains: the shards were revoked."""
        for task in self._drains.values():
            task.cancel()

    async def _drain(self, session: GuardedSession, shard: ShardId, epoch: int, grace: float) -> None:
        drained = False
        try:
            work = self._host.drain(shard, grace)
            await self._supervisor.bounded(work, "drain shard", grace + DRAIN_MARGIN)
            drained = True
        except TimeoutError:
            _log.warning("shard %s is not drained %.3g s after its grace: it is revoked", shard, DRAIN_MARGIN)
        finally:
            self._drains.pop(shard, None)
            self._drain_ended(session, shard, epoch, drained=drained)

    def _drain_ended(self, session: GuardedSession, shard: ShardId, epoch: int, *, drained: bool) -> None:
        if self._holdings.owned.get(shard) == epoch:
            del self._holdings.owned[shard]
            if not drained:
                self._host.revoked((shard,), "its hand-over failed or overran its grace")
        if session is self._holdings.session:
            self.give_back({shard: epoch})
        else:
            self._holdings.releasing.pop(shard, None)
            self._holdings.changed.set()
            self._again()

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
                self._again()
                self._host.released({shard: self._next_owner(shard) for shard in batch})

    async def _release(self, batch: Mapping[ShardId, int]) -> None:
        session = self._holdings.session
        try:
            work = self._storage.release(batch, self._incarnation)
            await store_call(self._supervisor, work, "release shards", RELEASE_DEADLINE)
        except PersistenceError as error:
            # The next owner's take overwrites the rows, so the lock is freed all the same.
            _log.warning("%d shards keep their former owner in the store: %s", len(batch), error)
        if session is not None:
            try:
                await session.unlock(list(batch))
            except SessionLost as error:
                _log.warning("the locks of %d released shards ended with their session: %s", len(batch), error)


class Acquisitions:
    """Gets the locks of wished shards, becomes their owner in the store, and grants them to the host."""

    def __init__(
        self,
        *,
        holdings: Holdings,
        storage: Storage,
        host: ShardHost,
        supervisor: Supervisor,
        clock: Clock,
        wanted: Callable[[], frozenset[ShardId]],
        give_back: Callable[[Mapping[ShardId, int]], None],
        again: Callable[[], None],
    ) -> None:
        self._holdings = holdings
        self._storage = storage
        self._host = host
        self._supervisor = supervisor
        self._clock = clock
        self._wanted = wanted
        self._give_back = give_back
        self._again = again
        self._batch = _LARGEST_BATCH
        self._backoff = Backoff(0.05, 1.0)
        self._failures = 0
        self._wish_heard = False
        self.takeovers = 0
        self.last_duration = 0.0

    def start(self, shards: Sequence[ShardId], info: RunnerInfo, since: float) -> None:
        """Begin to acquire `shards`; `since` (monotonic) is when the wish came up, for statistics."""
        session = self._holdings.session
        if session is None:
            return
        for first in range(0, len(shards), self._batch):
            batch = shards[first : first + self._batch]
            self._holdings.acquiring.update(batch)
            _ = self._supervisor.spawn(self._acquire(session, batch, info, since), "acquire shards")

    def heard(self) -> None:
        """Note that somebody asked for another look: a try that is under way may have come too early."""
        self._wish_heard = bool(self._holdings.acquiring)

    async def _acquire(
        self, session: GuardedSession, shards: Sequence[ShardId], info: RunnerInfo, since: float
    ) -> None:
        locked = shards
        epochs: Mapping[ShardId, int] = {}
        try:
            locked = await session.try_lock(shards)
            wishes = self._wanted()
            wanted = [shard for shard in locked if shard in wishes]
            if len(wanted) < len(locked):
                await session.unlock(sorted(set(locked).difference(wanted)))
            locked = wanted
            if wanted and self._holdings.may_act(session):
                work = self._storage.take(wanted, info)
                epochs = await store_call(self._supervisor, work, "take shards", TAKE_DEADLINE)
        except SessionLost as error:
            _log.info("%d shards were not acquired: %s", len(shards), error)
        except PersistenceError as error:
            await self._failed(session, locked, error)
        finally:
            self._holdings.acquiring.difference_update(shards)
            self._granted(session, epochs, since)
            self._holdings.changed.set()
            if self._wish_heard or session is not self._holdings.session:
                self._wish_heard = False
                self._again()

    def _granted(self, session: GuardedSession, epochs: Mapping[ShardId, int], since: float) -> None:
        if not epochs or not self._holdings.may_act(session):
            return
        self._failures = 0
        self._batch = min(_LARGEST_BATCH, self._batch * _SHRINK)
        if self._holdings.leaving:
            self._give_back(epochs)
            return
        self._holdings.owned.update(epochs)
        self.takeovers += len(epochs)
        self.last_duration = self._clock.monotonic() - since
        self._host.granted(epochs)

    async def _failed(self, session: GuardedSession, locked: Sequence[ShardId], error: PersistenceError) -> None:
        """Free the locks, so that nothing is stranded, and try again soon in smaller parts: one shard may be stuck."""
        self._failures += 1
        self._batch = max(1, min(self._batch, len(locked)) // _SHRINK)
        delay = self._backoff.delay(self._failures, self._clock.random())
        _log.warning("taking %d shards failed and is tried again in %.3g s: %s", len(locked), delay, error)
        asyncio.get_running_loop().call_later(delay, self._again)
        try:
            await session.unlock(locked)
        except SessionLost as lost:
            _log.info("the locks of %d shards ended with their session: %s", len(locked), lost)
