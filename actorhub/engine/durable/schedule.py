"""Messages with a due time: those of the next minute are in a heap, the others in the store only."""

import asyncio
import heapq
import itertools
from collections.abc import Iterable
from typing import Final

from actorhub.engine.model.durable_message import DurableMessage, Place

LIMIT: Final = 10_000
"""Messages that one scan brings in, at most."""


class Schedule:
    """The heap of what is due soon. `due.DueLoop` takes from it; everybody else only adds, and wakes that loop.

    A message that left memory stays in the heap until it is due, and is dropped then.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, DurableMessage]] = []
        self._order = itertools.count()
        self.complete_until = 0.0
        """Every message of the owned shards that is due before this, by the store's clock, is in the heap.

        During a scan: or comes with its answer.
        """
        self.is_full = False
        """The last scan found more than it could bring in."""
        self.scan_at = 0.0
        """When to scan the store next, in monotonic seconds."""
        self.wake = asyncio.Event()
        """Wakes the loop."""

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def is_overfull(self) -> bool:
        """Whether there is so much that what is due last should wait in the store."""
        return len(self._heap) > 2 * LIMIT

    @property
    def first_due(self) -> float | None:
        """When the first message is due; `None`: there is none."""
        return self._heap[0][0] if self._heap else None

    def poll_soon(self) -> None:
        """Have the store scanned soon, in case this process was not told of something there."""
        self.scan_at = 0.0
        self.wake.set()

    def add(self, message: DurableMessage, due: float) -> bool:
        """Take a message if it is due soon; `False`: leave it in the store, where a later scan will find it."""
        if due >= self.complete_until:
            return False
        self.push(message, due)
        if self._heap[0][2] is message or self.is_overfull:
            self.wake.set()
        return True

    def push(self, message: DurableMessage, due: float) -> None:
        """Take a message, whenever it is due."""
        message.due = due
        heapq.heappush(self._heap, (due, next(self._order), message))

    def pop_due(self, now: float) -> Iterable[DurableMessage]:
        """Take out what is due, in order; drop what left memory meanwhile."""
        while self._heap and (self._heap[0][2].place is Place.GONE or self._heap[0][0] <= now):
            message = heapq.heappop(self._heap)[2]
            if message.place is not Place.GONE:
                yield message

    def trim(self) -> list[DurableMessage]:
        """Take out and return what is due last: the caller leaves it in the store, for a scan closer to its time."""
        waiting = sorted(entry for entry in self._heap if entry[2].place is not Place.GONE)
        self._heap, later = waiting[:LIMIT], waiting[LIMIT:]
        if later:
            self.is_full = True
            self.complete_until = min(self.complete_until, later[0][0])
        return [message for _, _, message in later]
