"""The time until which this process may act for its shards."""

import math
from typing import Final

from actorhub.core.clock import Clock

NEVER: Final = -math.inf
"""A lease that nobody granted."""


class Lease:
    """The lease of one runner, for all its shards. Ownership extends and ends it; everybody else reads it.

    Whoever starts or commits something compares it with the clock; a timer alone would not do. A process that was
    frozen (SIGSTOP, a paused machine, a handler that blocks the event loop) goes on in the middle of whatever it did,
    before any timer fires, and by then another runner may own its shards.
    """

    __slots__ = ("_monotonic", "fresh_until")

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self.fresh_until = NEVER
        """Monotonic seconds after which nothing may start, be committed or be replied."""

    def is_fresh(self) -> bool:
        """Whether this process can prove its ownership right now."""
        return self._monotonic() < self.fresh_until
