"""One sweeper for every deadline in the process: adding and dropping one costs two dictionary steps, no timer."""

import asyncio
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from actorhub.core.clock import Clock

_TICKS_PER_SECOND: Final = 20


class HasDeadline(Protocol):
    """Something that expires at `deadline`, in seconds of the monotonic clock."""

    deadline: float


T = TypeVar("T", bound=HasDeadline)


class Deadlines(Generic[T]):
    """Calls back, within 50 ms after their deadline, for the items that were not dropped before."""

    __slots__ = ("_clock", "_loop", "_on_expired", "_ticks", "_timer", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, on_expired: Callable[[T], None]) -> None:
        """Prepare an empty table.

        Args:
            loop: Runs the sweeper.
            clock: Its monotonic time is what deadlines are given in.
            on_expired: Called on the loop for each item whose deadline passed; must not raise.
        """
        self._loop = loop
        self._clock = clock
        self._on_expired = on_expired
        self._ticks: dict[int, dict[T, None]] = {}
        self.size = 0
        """How many items are watched."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T) -> None:
        """Watch `item`; its deadline must not change before it is dropped."""
        tick = int(item.deadline * _TICKS_PER_SECOND)
        items = self._ticks.get(tick)
        if items is None:
            items = self._ticks[tick] = {}
            if self._timer is None:
                self._timer = self._loop.call_later(1 / _TICKS_PER_SECOND, self._sweep)
        items[item] = None
        self.size += 1

    def drop(self, item: T) -> None:
        """Forget `item`; nothing happens when it expired or was dropped before."""
        items = self._ticks.get(int(item.deadline * _TICKS_PER_SECOND))
        if items is not None and items.pop(item, 0) is None:
            self.size -= 1

    def _sweep(self) -> None:
        current = int(self._clock.monotonic() * _TICKS_PER_SECOND)
        for tick in sorted(tick for tick, items in self._ticks.items() if tick < current or not items):
            items = self._ticks.pop(tick)
            self.size -= len(items)
            for item in items:
                self._on_expired(item)
        self._timer = self._loop.call_later(1 / _TICKS_PER_SECOND, self._sweep) if self._ticks else None

    def close(self) -> None:
        """Stop watching; what is left never expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ticks.clear()
        self.size = 0
