"""Until when this process may act for its shards."""

import math
from typing import Final

from actorhub.core.clock import Clock

NEVER: Final = -math.inf
"""A lease that nobody granted."""


class Lease:
    """The lease of one runner, for all its shards. Ownership extends and ends it; everybody else reads it.

    It is compared with the clock at each start and commit, and not only by a timer: a process that was frozen wakes up
    in the middle of whatever it did.
    """

    __slots__ = ("_monotonic", "fresh_until")

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self.fresh_until = NEVER
        """Monotonic seconds after which nothing may start, commit or be replied."""

    def is_fresh(self) -> bool:
        """Whether this process can prove its ownership right now."""
        return self._monotonic() < self.fresh_until
