"""The store in memory, for tests and simulations: the same promises, no server."""

from actorhub.storage.memory.storage import MemoryStorage
from actorhub.storage.memory.store import MemoryStore

__all__ = ["MemoryStorage", "MemoryStore"]
