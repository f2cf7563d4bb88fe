"""The loop that starts messages when they are due, and scans ahead for those that will be."""

import logging
from collections.abc import Collection
from typing import Final

from actorhub.core.errors import PersistenceError
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.loading import Loading
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import LIMIT, Schedule
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.supervision import set_or_time

_log: Final = logging.getLogger("actorhub.schedule")

HORIZON: Final = 60.0
"""Seconds ahead of which messages are held in memory."""
_RETRY: Final = 0.5
"""Seconds until the next scan after a failed one."""
_SHORTEST: Final = 0.001


class DueLoop:
    """Admits what is due, never early by the store's clock."""

    def __init__(self, owner: Owner, *, schedule: Schedule, memory: InMemory, loading: Loading) -> None:
        self._schedule = schedule
        self._memory = memory
        self._loading = loading
        self._server = owner.server
        self._shards = owner.shards
        self._store = owner.store
        self._clock = owner.clock

    async def run(self) -> None:
        """Admit what is due, and scan ahead, until cancelled."""
        schedule = self._schedule
        while True:
            schedule.wake.clear()
            if schedule.is_overfull:
                for message in schedule.trim():
                    self._memory.leave_in_store(message)
            pause = await self._admit_due()
            if self._shards and self._clock.monotonic() >= schedule.scan_at:
                await self._scan()
                continue
            await set_or_time(schedule.wake, pause)

    async def _admit_due(self) -> float | None:
        """Return the seconds until something is to be done; `None`: nothing is."""
        schedule, now = self._schedule, self._server.now()
        overdue = [message for message in schedule.pop_due(now) if not self._memory.admit(message, from_store=True)]
        if overdue:
            await self._promote(overdue)
        if schedule.is_full and len(schedule) < LIMIT // 2:
            schedule.scan_at = min(schedule.scan_at, self._clock.monotonic() + _RETRY)
        if not self._shards:
            return None
        pause = schedule.scan_at - self._clock.monotonic()
        if (first := schedule.first_due) is not None:
            pause = min(pause, first - now)
        return max(pause, _SHORTEST)

    async def _promote(self, overdue: Collection[DurableMessage]) -> None:
        """Have the backlog's loader bring in what found no place."""
        try:
            await self._store.promote_due([message.message_id for message in overdue])
        except PersistenceError as error:
            _log.warning("%d due messages wait for the next scan of the store: %s", len(overdue), error)
            self._schedule.scan_at = self._clock.monotonic() + _RETRY
        for message in overdue:
            self._memory.spill(message)

    async def _scan(self) -> None:
        schedule, shards = self._schedule, list(self._shards)
        known_until, until = schedule.complete_until, self._server.now() + HORIZON
        # What is stored while the answer is on its way may be missing from it. From now on whoever stores such a
        # message adds it to the heap, so that it is in one of the two.
        schedule.complete_until = max(known_until, until)
        schedule.scan_at = self._clock.monotonic() + HORIZON * 0.75
        try:
            rows, now = await self._store.load_scheduled(shards, until, LIMIT)
        except PersistenceError as error:
            _log.warning("cannot scan for due messages, will try again: %s", error)
            schedule.scan_at = self._clock.monotonic() + _RETRY
            schedule.complete_until = known_until
            return
        self._server.observe_time(now)
        if until < now + HORIZON / 2:
            # The first scan went by this process's own clock, which is behind: this answer says what time it is.
            schedule.scan_at = 0.0
        schedule.is_full = len(rows) >= LIMIT
        schedule.complete_until = rows[-1].deliver_at if schedule.is_full else until
        for row in rows:
            shard = self._shards.get(row.shard)
            if shard is not None and (message := self._loading.load(row, shard)) is not None:
                self._memory.scheduled(message, row.deliver_at)
