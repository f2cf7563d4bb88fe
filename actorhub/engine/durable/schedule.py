"""Messages with a due time: the next minute's are in a heap, the rest stay in the store."""

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.engine.model.cell import HostedShard
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.supervision import set_or_time
from actorhub.storage.message_ports import MessageStore, PendingMessage

_log: Final = logging.getLogger("actorhub.schedule")

HORIZON: Final = 60.0
"""Seconds ahead of which messages are held in memory."""
LIMIT: Final = 10_000
"""Messages that one look brings in at most."""
_SAMPLES: Final = 8
_SAMPLE_AGE: Final = 120.0
_RETRY: Final = 0.5
"""Seconds until the next look after a failed one."""
_SHORTEST: Final = 0.001


class ServerClock:
    """What time it is at least on the store's clock, so that nothing runs early by it.

    An answer that carries the store's time proves that it was at least that late when the answer arrived; of the last
    answers the one that travelled fastest counts.
    """

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._wall = clock.time
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._offset: float | None = None

    def heard(self, now: float) -> None:
        """Note the store's time in an answer that just arrived, in seconds since the Unix epoch."""
        arrived = self._monotonic()
        self._samples.append((arrived, now - arrived))
        self._offset = max(offset for at, offset in self._samples if at >= arrived - _SAMPLE_AGE)

    def distrust(self) -> None:
        """Forget what was heard: the store's clock stepped back."""
        self._samples.clear()

    def now(self) -> float:
        """Return seconds since the Unix epoch; this process's own idea before anything was heard."""
        return self._wall() if self._offset is None else self._monotonic() + self._offset


class Schedule:
    """Starts messages when they are due. Owned by its `run`; the other methods only note wishes and wake it."""

    def __init__(
        self,
        *,
        shards: Mapping[ShardId, HostedShard],
        store: MessageStore,
        clock: Clock,
        load: Callable[[PendingMessage, HostedShard], DurableMessage | None],
        seat: Callable[[DurableMessage], bool],
    ) -> None:
        self._shards = shards
        self._store = store
        self._clock = clock
        self.server = ServerClock(clock)
        self._load = load
        self._seat = seat
        self._heap: list[tuple[float, int, DurableMessage]] = []
        self._order = itertools.count()
        self._complete_until = 0.0
        """Every message of the owned shards that is due before this (on the store's clock) is in the heap."""
        self._is_looking = False
        self._is_full = False
        """The last look found more than it could bring in."""
        self._look_at = 0.0
        """Monotonic seconds of the next look."""
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._heap)

    def look(self) -> None:
        """Look into the store soon: there may be messages that this process was not told of."""
        self._look_at = 0.0
        self._wake.set()

    def add(self, message: DurableMessage, due: float) -> bool:
        """Take a message that is due then, if that is soon; `False`: a later look will find it in the store."""
        if due >= self._complete_until:
            return False
        message.due = due
        heapq.heappush(self._heap, (due, next(self._order), message))
        if self._heap[0][2] is message:
            self._wake.set()
        if len(self._heap) > 2 * LIMIT and not self._is_looking:
            self._trim()
        return True

    async def run(self) -> None:
        """Seat what is due, and look ahead, for ever."""
        while True:
            self._wake.clear()
            pause = await self._seat_due()
            if self._shards and self._clock.monotonic() >= self._look_at:
                await self._look()
                continue
            await set_or_time(self._wake, pause)

    async def _seat_due(self) -> float | None:
        """Return the seconds until something is to be done; `None`: nothing is."""
        now = self.server.now()
        overdue: list[DurableMessage] = []
        while self._heap and (self._heap[0][2].is_dropped or self._heap[0][0] <= now):
            message = heapq.heappop(self._heap)[2]
            if not message.is_dropped and not self._seat(message):
                overdue.append(message)
        if overdue:
            await self._promote_due(overdue)
        if self._is_full and len(self._heap) < LIMIT // 2:
            self._look_at = min(self._look_at, self._clock.monotonic() + _RETRY)
        if not self._shards:
            return None
        pause = self._look_at - self._clock.monotonic()
        if self._heap:
            pause = min(pause, self._heap[0][0] - now)
        return max(pause, _SHORTEST)

    async def _promote_due(self, overdue: Collection[DurableMessage]) -> None:
        """Have the backlog's loader bring in what found no place."""
        try:
            await self._store.promote_due([message.message_id for message in overdue])
        except PersistenceError as error:
            _log.warning("%d due messages wait for the next look into the store: %s", len(overdue), error)
            self._look_at = self._clock.monotonic() + _RETRY
        for message in overdue:
            message.hosted.host.delivery.set_aside(message)

    def _trim(self) -> None:
        """Leave what is due last in the store, for a look in good time."""
        waiting = sorted(entry for entry in self._heap if not entry[2].is_dropped)
        self._heap, later = waiting[:LIMIT], waiting[LIMIT:]
        if later:
            self._is_full = True
            self._complete_until = min(self._complete_until, later[0][0])
        for _, _, message in later:
            message.hosted.host.delivery.leave_in_store(message)

    async def _look(self) -> None:
        shards = list(self._shards)
        known_until, until = self._complete_until, self.server.now() + HORIZON
        # What is stored while the answer is on its way may be missing from it: it is added here from now on.
        self._complete_until = max(known_until, until)
        self._look_at = self._clock.monotonic() + HORIZON * 0.75
        self._is_looking = True
        try:
            rows, now = await self._store.load_scheduled(shards, until, LIMIT)
        except PersistenceError as error:
            _log.warning("cannot look for due messages, will try again: %s", error)
            self._look_at = self._clock.monotonic() + _RETRY
            self._complete_until = known_until
            return
        finally:
            self._is_looking = False
        self.server.heard(now)
        if until < now + HORIZON / 2:
            # The first look went by this process's own clock, which is behind: this one says what time it is.
            self._look_at = 0.0
        self._is_full = len(rows) >= LIMIT
        self._complete_until = rows[-1].deliver_at if self._is_full else until
        for row in rows:
            shard = self._shards.get(row.shard)
            if shard is None or (message := self._load(row, shard)) is None:
                continue
            message.due = row.deliver_at
            heapq.heappush(self._heap, (row.deliver_at, next(self._order), message))
