"""For tests of your own entities: a whole cluster in one event loop, with faults on demand."""

from actorhub.testing.clock import SteppedClock
from actorhub.testing.cluster import MemoryCluster, until

__all__ = ["MemoryCluster", "SteppedClock", "until"]
