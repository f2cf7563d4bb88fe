"""The other runners: the runner table as last read, whom to suspect, and the shards that follow from it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from actorhub.core.address import RunnerAddress, RunnerInfo
from actorhub.core.clock import Clock
from actorhub.core.errors import ConfigurationError, PersistenceError, ShuttingDown
from actorhub.core.logger import get_logger
from actorhub.engine.model.lease import NEVER
from actorhub.engine.ownership.plan import (
    LIVE_WITHIN,
    RECEPTIVE_WITHIN,
    DesiredShards,
    Suspects,
    desired_shards,
    living,
    namesakes,
    stale,
)
from actorhub.engine.ownership.roster import Roster
from actorhub.engine.supervision import Supervisor, store_call
from actorhub.storage.ports import HEARTBEAT_INTERVAL, LiveRunner, Storage, TableSlice

_log: Final = get_logger("actorhub.ownership")

_INTERVAL: Final = HEARTBEAT_INTERVAL.total_seconds()
_WATCHFUL_INTERVAL: Final = 0.25
"""Seconds between heartbeats while a peer is overdue, so that its end is noticed soon."""
_OVERDUE: Final = 2.0
"""Seconds of silence after which a peer is overdue."""
_EVICTION_INTERVAL: Final = 1.0
_NAMESAKE_IS_DEAD: Final = 1.5
"""Seconds of silence after which a former runner at our address counts as dead; a living one sends one every second."""
_NAMESAKE_POLL: Final = 0.1
_DEADLINE: Final = 2.0
_PEER_DEADLINE: Final = 0.5


class Membership:
    """The cluster as this runner sees it."""

    def __init__(
        self,
        *,
        storage: Storage,
        supervisor: Supervisor,
        clock: Clock,
        shards_per_group: int,
        rebalance: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._supervisor = supervisor
        self._clock = clock
        self._shards_per_group = shards_per_group
        self._rebalance = rebalance
        self._roster = Roster()
        self._late: frozenset[str] = frozenset()
        """The runners that were overdue when their rows were last read."""
        self.living: tuple[LiveRunner, ...] = ()
        """The runners that were alive when the table was last read, this one included."""
        self.suspects = Suspects()
        self.last_desired = DesiredShards(frozenset(), {}, frozenset())
        self._infos: tuple[RunnerInfo, ...] = ()
        """What `living` declare; another object when that has changed."""
        self._desired_for: tuple[tuple[RunnerInfo, ...], frozenset[str], RunnerInfo] | None = None
        self._evicted: dict[str, float] = {}
        self._known_namesakes: set[str] = set()
        self._forgiven = 0.0
        self._forgiven_until = NEVER

    @property
    def registered(self) -> int:
        """How many runners the table had when it was last read, silent ones included."""
        return len(self._roster.rows)

    def read_all(self) -> None:
        """Have the next heartbeat read the whole runner table, because there may be something new anywhere in it."""
        self._roster.read_all()

    def next_slice(self) -> TableSlice | None:
        """Return what the next heartbeat should read of the runner table; `None`: all of it."""
        return self._roster.next_slice(self._late | self.suspects.incarnations)

    def suspected(self) -> Sequence[RunnerAddress]:
        """Return the registered runners that are suspected."""
        rows = self._roster.rows
        return [rows[name].info.runner for name in self.suspects.incarnations if name in rows]

    async def is_registered(self, incarnation: str) -> bool:
        """Return whether the table has the runner; also `True` if the store does not answer, so that nobody knows."""
        if incarnation in self._roster.rows:
            return True
        try:
            # Not by a heartbeat: this runner's lock session may be what has ended.
            rows = await store_call(self._supervisor, self._storage.runners(), "list runners", _PEER_DEADLINE)
        except PersistenceError as error:
            _log.warning("whether runner %r is registered is not known: %s", incarnation[:6], error)
            return True
        return any(row.info.runner.incarnation == incarnation for row in rows)

    def forgive(self, seconds: float) -> None:
        """Ignore up to `seconds` of everybody's silence for the next few seconds.

        Called when this runner has a new session after a gap. If the store was away, no peer could send heartbeats
        either, and every row looks stale when it is back. Without this, the first runner to return would end the lock
        sessions of all others and take all shards. Peers that are really dead stay silent, and are noticed a few
        seconds later.
        """
        self._forgiven = seconds
        self._forgiven_until = self._clock.monotonic() + LIVE_WITHIN

    def observe(self, rows: Sequence[LiveRunner], asked: TableSlice | None, me: RunnerInfo) -> bool:
        """Take in what a heartbeat has read of the runner table, where it asked for `asked`.

        Returns:
            Whether the living runners, or what they declare, changed.
        """
        now = self._clock.monotonic()
        forgiven = self._forgiven if now < self._forgiven_until else 0.0
        has_changed = self._roster.take(rows, asked, me.runner.incarnation)
        known = self._roster.rows
        # Suspects first: what is desired, and who may be given shards, depends on them.
        others = [row for row in rows if row.info.runner != me.runner]
        self.suspects.observe(others, now, forgiven, registered=known)
        were_late, self._late = (
            self._late,
            frozenset(row.info.runner.incarnation for row in others if row.silent_for >= _OVERDUE),
        )
        if not (has_changed or were_late or self._late or asked is None):
            return False
        self.living = living(list(known.values()), me, forgiven)
        before, infos = self._infos, tuple(row.info for row in self.living)
        if infos != before:
            self._infos = infos
        for incarnation, forget in stale(rows, me, forgiven).items():
            # All runners see the silence at about the same time, and each of them evicts. That does no harm: ending a
            # session that has ended, or removing a row that is gone, does nothing.
            if now - self._evicted.get(incarnation, NEVER) >= _EVICTION_INTERVAL:
                self._evicted[incarnation] = now
                _ = self._supervisor.spawn(self._evict(incarnation, forget=forget), "evict silent runner")
        self._evicted = {name: at for name, at in self._evicted.items() if now - at < 2 * _EVICTION_INTERVAL}
        self._report_namesakes(list(known.values()), me)
        return self._infos is not before

    def desired(self, me: RunnerInfo) -> DesiredShards:
        """Return the shards that `me` should own, by what is known now. Computed only when that has changed."""
        suspects, of = self.suspects.incarnations, self._desired_for
        # Each heartbeat asks, so that all runners are compared as one object, which `observe` replaces.
        if of is None or of[0] is not self._infos or of[1:] != (suspects, me):
            infos = tuple(me if info.runner == me.runner else info for info in self._infos)
            self.last_desired = desired_shards(infos, suspects, me, self._shards_per_group)
            self._desired_for = (self._infos, suspects, me)
        return self.last_desired

    def receptive(self) -> frozenset[RunnerAddress]:
        """Return the runners that shards may be handed over to: recently heard from, and not suspected."""
        return frozenset(
            row.info.runner
            for row in self.living
            if row.silent_for < RECEPTIVE_WITHIN and row.info.runner.incarnation not in self.suspects
        )

    def interval(self) -> float:
        """Return the seconds until the next heartbeat: fewer while a peer is overdue, and always with some jitter."""
        return (_WATCHFUL_INTERVAL if self._late else _INTERVAL) * (0.9 + 0.1 * self._clock.random())

    async def replace_namesakes(self, me: RunnerInfo) -> None:
        """Wait until former runners at this address are known to be dead, and remove their rows.

        Peers find a runner by its address, so of two living ones at one address only one would be reached. Usually the
        former runner is this one before its restart, and dead. If it lives, its silence shrinks from one reading of the
        table to the next, whenever a heartbeat has arrived; if it is dead, its silence only grows.

        Raises:
            ConfigurationError: One of them is alive.
            PersistenceError: The store failed.
        """
        last_silence: dict[str, float] = {}
        while True:
            rows = await store_call(self._supervisor, self._storage.runners(), "list runners", _DEADLINE)
            silent = {row.info.runner.incarnation: row.silent_for for row in namesakes(rows, me)}
            for incarnation, seconds in silent.items():
                if seconds < last_silence.get(incarnation, 0.0):
                    raise ConfigurationError(
                        f"a living runner has the address {me.runner.address} already (incarnation {incarnation}): "
                        "stop it, or give this runner an address of its own with --listen or --advertise"
                    )
                if seconds >= _NAMESAKE_IS_DEAD:
                    work = self._storage.remove_runner(incarnation)
                    await store_call(self._supervisor, work, "remove runner", _DEADLINE)
            last_silence = {name: seconds for name, seconds in silent.items() if seconds < _NAMESAKE_IS_DEAD}
            if not last_silence:
                return
            await asyncio.sleep(_NAMESAKE_POLL)

    def _report_namesakes(self, rows: Sequence[LiveRunner], me: RunnerInfo) -> None:
        found = {row.info.runner.incarnation for row in namesakes(rows, me) if row.silent_for < _NAMESAKE_IS_DEAD}
        for incarnation in found - self._known_namesakes:
            _log.error(
                "runner %s also advertises %s, the address of this runner: peers reach only one of the two",
                incarnation,
                me.runner.address,
            )
        self._known_namesakes = found

    async def _evict(self, incarnation: str, *, forget: bool) -> None:
        """End the lock sessions of a silent runner, which frees its locks; `forget`: remove its row if it has none.

        A frozen process keeps its TCP connections, so its locks stay taken. Its own lease has run out by now, and what
        it still sends after it thaws is refused at the epochs of the next owners.
        """
        try:
            work = self._storage.terminate_sessions(incarnation)
            ended = await store_call(self._supervisor, work, "end sessions of silent runner", _DEADLINE)
            if ended:
                _log.warning("ended %d lock session(s) of runner %s, which is silent", ended, incarnation)
                self._rebalance()
            elif forget:
                work_left = self._storage.remove_runner(incarnation)
                await store_call(self._supervisor, work_left, "remove runner", _DEADLINE)
        except (PersistenceError, ShuttingDown) as error:
            _log.warning("could not evict runner %s, which is silent; next attempt in a second: %s", incarnation, error)
