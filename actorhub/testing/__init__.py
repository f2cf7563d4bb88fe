"""For tests of your own entities: a whole cluster in one event loop, with faults on demand."""

from actorhub.testing.clock import SteppedClock
from actorhub.testing.cluster import MemoryCluster, until
from actorhub.testing.memory_factory import MemoryFactory
from actorhub.testing.state import give_state, state_of

__all__ = ["MemoryCluster", "MemoryFactory", "SteppedClock", "give_state", "state_of", "until"]
