"""For tests of your own entities: a whole cluster in one event loop, with faults on demand; or a handler alone."""

from actorhub.testing.clock import SteppedClock
from actorhub.testing.cluster import MemoryCluster, until
from actorhub.testing.memory_factory import MemoryFactory
from actorhub.testing.state import give_state, state_of
from actorhub.testing.unhosted import told_by, unhosted
from actorhub.testing.unhosted_current import Told

__all__ = [
    "MemoryCluster",
    "MemoryFactory",
    "SteppedClock",
    "Told",
    "give_state",
    "state_of",
    "told_by",
    "unhosted",
    "until",
]
