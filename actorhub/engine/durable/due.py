"""The loop that queues messages when they are due, and scans ahead for those that will be."""

from collections.abc import Collection
from typing import Final

from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.loading import Loading
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import LIMIT, Schedule
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.supervision import set_or_time

_log: Final = get_logger("actorhub.schedule")

HORIZON: Final = 60.0
"""How many seconds ahead messages are held in memory."""
_RETRY: Final = 0.5
"""Seconds until the next scan after a failed one."""
_SHORTEST: Final = 0.001


class DueLoop:
    """Admits what is due, on time as far as this process can know.

    That nothing *runs* early is not promised here, but by the store, which compares the due time with its own clock
    when it counts the run (`attempts`). `ServerClock` is at most late by the travel time of an answer, so the heap is
    hardly ever early, and late by about as much.
    """

    def __init__(self, owner: Owner, *, schedule: Schedule, memory: InMemory, loading: Loading) -> None:
        self._schedule = schedule
        self._memory = memory
        self._loading = loading
        self._server = owner.server
        self._shards = owner.shards
        self._store = owner.store
        self._clock = owner.clock

    async def run(self) -> None:
        """Admit what is due and scan ahead, until cancelled."""
        schedule = self._schedule
        while True:
            schedule.wake.clear()
            if schedule.is_overfull:
                # Memory is bounded: what is due last waits in the store, and a scan closer to its time brings it in
                # again.
                for message in schedule.trim():
                    self._memory.leave_in_store(message)
            pause = await self._admit_due()
            if self._shards and self._clock.monotonic() >= schedule.scan_at:
                await self._scan()
                continue
            await set_or_time(schedule.wake, pause)

    async def _admit_due(self) -> float | None:
        """Admit what is due; return the seconds until there is something to do, `None`: until woken."""
        schedule, now = self._schedule, self._server.now()
        overdue = [message for message in schedule.pop_due(now) if not self._memory.admit(message, from_store=True)]
        if overdue:
            await self._promote(overdue)
        # Half of a full scan is worked off: fetch more before the heap runs dry.
        if schedule.is_full and len(schedule) < LIMIT // 2:
            schedule.scan_at = min(schedule.scan_at, self._clock.monotonic() + _RETRY)
        if not self._shards:
            return None
        pause = schedule.scan_at - self._clock.monotonic()
        if (first := schedule.first_due) is not None:
            pause = min(pause, first - now)
        return max(pause, _SHORTEST)

    async def _promote(self, overdue: Collection[DurableMessage]) -> None:
        """Let the backlog's loader bring in what found no place."""
        # A row with a due time is found by scans of the schedule only. Once it is promoted it waits in line with what
        # is due at once; only then may it leave memory, or the loader might scan before and find nothing. If that
        # fails, the next scan of the schedule finds it again.
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
        # message adds it to the heap (`Schedule.add`), so that it is in one of the two; `Loading` drops what is in
        # both.
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
            # That scan went by this process's own clock, which is behind; the answer says what time it is.
            schedule.scan_at = 0.0
        # Of a full answer nothing is known after its last row.
        schedule.is_full = len(rows) >= LIMIT
        schedule.complete_until = rows[-1].deliver_at if schedule.is_full else until
        for row in rows:
            shard = self._shards.get(row.shard)
            if shard is not None and (message := self._loading.load(row, shard)) is not None:
                self._memory.schedule_found(message, row.deliver_at)
