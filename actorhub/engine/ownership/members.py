"""Who else is there: the runner table as last read, whom to believe dead, and the wishes that follow."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from actorhub.core.address import RunnerAddress, RunnerInfo
from actorhub.core.clock import Clock
from actorhub.core.errors import ConfigurationError, PersistenceError, ShuttingDown
from actorhub.engine.model.lease import NEVER
from actorhub.engine.ownership.plan import (
    LIVE_WITHIN,
    RECEPTIVE_WITHIN,
    Suspects,
    Wishes,
    living,
    namesakes,
    stale,
    wishes,
)
from actorhub.engine.ownership.session import store_call
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import HEARTBEAT_INTERVAL, LiveRunner, Storage

_log: Final = logging.getLogger("actorhub.ownership")

_INTERVAL: Final = HEARTBEAT_INTERVAL.total_seconds()
_WATCHFUL_INTERVAL: Final = 0.25
"""Seconds between looks while a peer is overdue, so that its end is seen soon."""
_OVERDUE: Final = 2.0
_EVICTION_INTERVAL: Final = 1.0
_NAMESAKE_IS_DEAD: Final = 1.5
"""Seconds of silence after which a former runner at our address counts as dead: a living one would have been heard."""
_NAMESAKE_LOOK: Final = 0.1
_DEADLINE: Final = 2.0


class Membership:
    """The cluster as this runner sees it."""

    def __init__(
        self,
        *,
        storage: Storage,
        supervisor: Supervisor,
        clock: Clock,
        shards_per_group: int,
        again: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._supervisor = supervisor
        self._clock = clock
        self._shards_per_group = shards_per_group
        self._again = again
        self._rows: Sequence[LiveRunner] = ()
        self.living: tuple[LiveRunner, ...] = ()
        """Who was alive at the last look, this runner included."""
        self.suspects = Suspects()
        self.last_wishes = Wishes(frozenset(), {}, frozenset())
        self._wished_for: object = None
        self._evicted: dict[str, float] = {}
        self._known_namesakes: set[str] = set()
        self._forgiven = 0.0
        self._forgiven_until = NEVER

    @property
    def registered(self) -> int:
        """How many runners the table had at the last look, silent ones included."""
        return len(self._rows)

    def forgive(self, seconds: float) -> None:
        """Hold up to `seconds` of silence against nobody for a while: perhaps nobody could reach the store."""
        self._forgiven = seconds
        self._forgiven_until = self._clock.monotonic() + LIVE_WITHIN

    def observe(self, rows: Sequence[LiveRunner], me: RunnerInfo) -> bool:
        """Take in the current runner table; return whether other runners live, or say other things, than before."""
        now = self._clock.monotonic()
        forgiven = self._forgiven if now < self._forgiven_until else 0.0
        self._rows = rows
        self.suspects.observe([row for row in rows if row.info.runner != me.runner], now, forgiven)
        before = [row.info for row in self.living]
        self.living = living(rows, me, forgiven)
        for incarnation, forget in stale(rows, me, forgiven).items():
            if now - self._evicted.get(incarnation, NEVER) >= _EVICTION_INTERVAL:
                self._evicted[incarnation] = now
                _ = self._supervisor.spawn(self._evict(incarnation, forget=forget), "evict silent runner")
        self._evicted = {name: at for name, at in self._evicted.items() if now - at < 2 * _EVICTION_INTERVAL}
        self._report_namesakes(rows, me)
        return before != [row.info for row in self.living]

    def wishes(self, me: RunnerInfo) -> Wishes:
        """Return the wishes by what is known now; computed only when that has changed."""
        excluded = frozenset(
            row.info.runner.incarnation for row in self.living if row.info.runner.incarnation in self.suspects
        )
        infos = tuple(me if row.info.runner == me.runner else row.info for row in self.living)
        if self._wished_for != (infos, excluded):
            self.last_wishes = wishes(infos, excluded, me, self._shards_per_group)
            self._wished_for = (infos, excluded)
        return self.last_wishes

    def receptive(self) -> frozenset[RunnerAddress]:
        """Return the runners that shards may be handed over to: lately heard of and not suspected."""
        return frozenset(
            row.info.runner
            for row in self.living
            if row.silent_for < RECEPTIVE_WITHIN and row.info.runner.incarnation not in self.suspects
        )

    def interval(self) -> float:
        """Return seconds until the next heartbeat: shorter while a peer is overdue, always with some jitter."""
        overdue = any(row.silent_for >= _OVERDUE for row in self._rows)
        return (_WATCHFUL_INTERVAL if overdue else _INTERVAL) * (0.9 + 0.1 * self._clock.random())

    async def replace_namesakes(self, me: RunnerInfo) -> None:
        """Wait until former runners at this address are proven dead, and remove their rows.

        Raises:
            ConfigurationError: one of them lives.
            PersistenceError: the store failed.
        """
        heard: dict[str, float] = {}
        while True:
            rows = await store_call(self._supervisor, self._storage.runners(), "list runners", _DEADLINE)
            silent = {row.info.runner.incarnation: row.silent_for for row in namesakes(rows, me)}
            for incarnation, seconds in silent.items():
                if seconds < heard.get(incarnation, 0.0):
                    raise ConfigurationError(
                        f"a living runner has the address {me.runner.address} already (incarnation {incarnation}): "
                        "stop it, or give this one an address of its own with --listen or --advertise"
                    )
                if seconds >= _NAMESAKE_IS_DEAD:
                    work = self._storage.remove_runner(incarnation)
                    await store_call(self._supervisor, work, "remove runner", _DEADLINE)
            heard = {name: seconds for name, seconds in silent.items() if seconds < _NAMESAKE_IS_DEAD}
            if not heard:
                return
            await asyncio.sleep(_NAMESAKE_LOOK)

    def _report_namesakes(self, rows: Sequence[LiveRunner], me: RunnerInfo) -> None:
        found = {row.info.runner.incarnation for row in namesakes(rows, me) if row.silent_for < _NAMESAKE_IS_DEAD}
        for incarnation in found - self._known_namesakes:
            _log.error("runner %s also advertises %s: peers reach only one of the two", incarnation, me.runner.address)
        self._known_namesakes = found

    async def _evict(self, incarnation: str, *, forget: bool) -> None:
        """End the sessions of a silent runner, so that its locks get free; remove its row when it has none left."""
        try:
            work = self._storage.terminate_sessions(incarnation)
            ended = await store_call(self._supervisor, work, "end sessions of silent runner", _DEADLINE)
            if ended:
                _log.warning("ended %d lock sessions of the silent runner %s", ended, incarnation)
                self._again()
            elif forget:
                work_left = self._storage.remove_runner(incarnation)
                await store_call(self._supervisor, work_left, "remove runner", _DEADLINE)
        except (PersistenceError, ShuttingDown) as error:
            _log.warning("cannot evict the silent runner %s, next try in a second: %s", incarnation, error)
