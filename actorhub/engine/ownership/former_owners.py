"""From when on a shard may be taken that its owner did not release.

A lock that is free proves that the session that held it has ended at the server. It does not prove that its holder
knows: something on the way may keep the news from it, and until its lease ends it acts for its shards. So whoever gets
the lock waits until the former owner can no longer act for anything that it had then:

- It is dead: its session has ended, and nobody listens at its address, or another incarnation does.
- It has let go: asked over the link, it does so at once.
- At the latest, its lease must have ended.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from actorhub.core.address import RunnerAddress, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.supervision import Supervisor, store_call
from actorhub.storage.ports import LEASE, LiveRunner, Storage

_log: Final = get_logger("actorhub.ownership")

LEASE_IS_OVER: Final = 1.1 * LEASE.total_seconds()
"""Seconds after its last sign of life in which a former owner's lease has ended. The tenth is there in case its clock
runs slower than ours, and for what it does when its lease ends, such as `on_lose_leadership`, to begin first."""
_PAUSE: Final = 0.1
"""Seconds between questions."""
_STORE_DEADLINE: Final = 1.0
_WINDOW: Final = 10.0
"""Seconds for which readings of the store's clock are kept."""


class Neighbours(Protocol):
    """The other processes, as far as they tell something about a former owner."""

    async def has_let_go(self, owner: RunnerAddress, tenures: Sequence[ShardOwner], seconds: float) -> bool:
        """Return whether `owner` is known to act for none of `tenures`, or to be dead; `False` if that is not known.

        A living one is asked to let go. Takes about `seconds` at most.
        """
        ...

    async def is_dead(self, runner: RunnerAddress) -> bool:
        """Return whether `runner` is known to be dead, before its session has ended; `False` if that is not known."""
        ...


class _Reading(msgspec.Struct, frozen=True):
    """By how much the store's clock was ahead of ours, between two bounds."""

    at: float
    least: float
    most: float


class StoreTime:
    """When the store heard of somebody, by the monotonic clock of this process.

    The store tells how long somebody has been silent by its own clock, which somebody may set. A wrong silence would
    end the wait for a lease too early. So it is believed no further than the two clocks have gone alike: by as much as
    the distance between them may have changed lately, the silence is taken to be shorter.
    """

    def __init__(self) -> None:
        self._readings: deque[_Reading] = deque(maxlen=64)

    def observe(self, rows: Sequence[LiveRunner], sent: float, received: float) -> None:
        """Take in the store's time from an answer to what was sent and received at these monotonic seconds."""
        if not rows:
            return
        store = rows[0].read_at
        self._readings.append(_Reading(received, store - received, store - sent))
        while self._readings[0].at < received - _WINDOW:
            self._readings.popleft()

    def heard_at(self, silent_for: float) -> float:
        """Return the latest time at which the store can have heard of somebody who is silent for that long now.

        Now is when the newest reading was received. Nothing is known of the time before the oldest one.
        """
        drift = max(one.most for one in self._readings) - min(one.least for one in self._readings)
        return max(self._readings[0].at, self._readings[-1].at - silent_for + drift)


class FormerOwners:
    """Tells when shards may be taken from owners that did not release them.

    Args:
        storage: Tells when a former owner was last heard of.
        supervisor: Bounds the store's answers.
        clock: The lease is waited out by its monotonic time.
        store_time: What is known of the store's clock.
        neighbours: Who is asked.
        suspects: Returns the runners that may be dead.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        supervisor: Supervisor,
        clock: Clock,
        store_time: StoreTime,
        neighbours: Neighbours,
        suspects: Callable[[], Sequence[RunnerAddress]],
    ) -> None:
        self._storage = storage
        self._supervisor = supervisor
        self._clock = clock
        self._store_time = store_time
        self._neighbours = neighbours
        self._suspects = suspects
        self._doubted: set[RunnerAddress] = set()
        """The suspects of which it is being found out whether they are dead."""
        self.waited_out = 0
        """How often a lease had to be waited out, because its owner was neither dead nor answered."""

    async def until_gone(
        self,
        owner: RunnerAddress,
        tenures: Sequence[ShardOwner],
        *,
        locked_at: float,
        is_wanted: Callable[[], bool],
    ) -> bool:
        """Return `True` once `owner` acts for none of `tenures`, and `False` once nobody wants to know.

        Args:
            owner: The former owner of shards that it did not release.
            tenures: The shards with its epochs, all of one answer of `try_lock`.
            locked_at: When that answer had come. By then the owner's session had ended, so it has not renewed its lease
                since, for these tenures: a lease that it gets with a later session is not theirs.
            is_wanted: Returns whether to go on.
        """
        # The lock bounds the last renewal in any case. What the store knows of the owner can only bring that forward.
        over_at = min(locked_at, await self._heard_at(owner, locked_at)) + LEASE_IS_OVER
        while is_wanted():
            left = over_at - self._clock.monotonic()
            if left <= 0:
                self.waited_out += 1
                _log.warning("the lease of runner %s is over: it does not answer, and cannot be known dead", owner)
                return True
            if await self._neighbours.has_let_go(owner, tenures, left):
                return True
            await asyncio.sleep(min(_PAUSE, max(0.0, over_at - self._clock.monotonic())))
        return False

    def end_the_dead(self, on_ended: Callable[[], None]) -> None:
        """End the lock sessions of suspects that are known to be dead, and call `on_ended` when one has ended.

        To be called when locks are held by others, where a session outlives its process: else they would be held until
        it has been silent for long enough. Where the server ends it with its process, one that goes on is the best sign
        that its runner lives: that a link broke, and an address refuses connections, may be due to the network.
        """
        for runner in self._suspects():
            if runner not in self._doubted:
                self._doubted.add(runner)
                _ = self._supervisor.spawn(self._end_if_dead(runner, on_ended), "find out whether a suspect is dead")

    async def _end_if_dead(self, runner: RunnerAddress, on_ended: Callable[[], None]) -> None:
        try:
            if not await self._neighbours.is_dead(runner):
                return
            work = self._storage.terminate_sessions(runner.incarnation)
            if await store_call(self._supervisor, work, "end sessions of a dead runner", _STORE_DEADLINE):
                _log.warning("ended the lock session of runner %s, which is dead", runner)
                on_ended()
        except PersistenceError as error:
            # It is found out again with the next locks that are tried.
            _log.warning("could not end the lock session of runner %s, which is dead: %s", runner, error)
        finally:
            self._doubted.discard(runner)

    async def _heard_at(self, owner: RunnerAddress, locked_at: float) -> float:
        """Return when the store last heard of a runner, at the latest: read after its locks had become free.

        A heartbeat that its session still sent had been written before the session ended. If its row is gone, nothing
        is known: somebody removed it.
        """
        sent = self._clock.monotonic()
        try:
            rows = await store_call(self._supervisor, self._storage.runners(), "list runners", _STORE_DEADLINE)
        except PersistenceError as error:
            _log.info("when runner %s was last heard of is not known: %s", owner, error)
            return locked_at
        self._store_time.observe(rows, sent, self._clock.monotonic())
        found = next((row for row in rows if row.info.runner.incarnation == owner.incarnation), None)
        return locked_at if found is None else self._store_time.heard_at(found.silent_for)
