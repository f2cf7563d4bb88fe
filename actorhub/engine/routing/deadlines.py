"""One sweeper for all deadlines of the process. Adding and dropping one costs two dictionary operations and no timer.

Almost every call is answered long before its deadline. With a timer of the event loop for each call, throughput would
drop by a third.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from actorhub.core.clock import Clock

_TICKS_PER_SECOND: Final = 20


class HasDeadline(Protocol):
    """An item that expires at `deadline`, in monotonic seconds."""

    deadline: float


T = TypeVar("T", bound=HasDeadline)


class Deadlines(Generic[T]):
    """Calls back for each item within 50 ms after its deadline, unless it was dropped before.

    Items are kept by tick, the twentieth of a second in which they expire.
    """

    __slots__ = ("_clock", "_loop", "_on_expired", "_ticks", "_timer", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, on_expired: Callable[[T], None]) -> None:
        """Prepare an empty table.

        Args:
            loop: Runs the sweeper.
            clock: Deadlines are in its monotonic seconds.
            on_expired: Called in the event loop for each item whose deadline has passed. Must not raise.
        """
        self._loop = loop
        self._clock = clock
        self._on_expired = on_expired
        self._ticks: dict[int, dict[T, None]] = {}
        self.size = 0
        """The number of items that are watched."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T) -> None:
        """Watch `item`. Its deadline must not change until it is dropped: it says where the item is found."""
        tick = int(item.deadline * _TICKS_PER_SECOND)
        items = self._ticks.get(tick)
        if items is None:
            items = self._ticks[tick] = {}
            if self._timer is None:
                self._timer = self._loop.call_later(1 / _TICKS_PER_SECOND, self._sweep)
        items[item] = None
        self.size += 1

    def drop(self, item: T) -> None:
        """Forget `item`. Does nothing if it has expired or was dropped before."""
        items = self._ticks.get(int(item.deadline * _TICKS_PER_SECOND))
        if items is not None and items.pop(item, 0) is None:
            self.size -= 1

    def _sweep(self) -> None:
        current = int(self._clock.monotonic() * _TICKS_PER_SECOND)
        # Ticks leave the table before their callbacks run, which may add and drop items. Empty ticks go as well:
        # usually every item of a tick was dropped in time.
        for tick in sorted(tick for tick, items in self._ticks.items() if tick < current or not items):
            items = self._ticks.pop(tick)
            self.size -= len(items)
            for item in items:
                self._on_expired(item)
        self._timer = self._loop.call_later(1 / _TICKS_PER_SECOND, self._sweep) if self._ticks else None

    def close(self) -> None:
        """Stop watching. What is left never expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ticks.clear()
        self.size = 0
