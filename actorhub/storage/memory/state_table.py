"""The committed states of a memory store."""

import math

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.storage.ports import StoredState, VersionConflict

EntityKey = tuple[str, str]
"""Type and id."""


class StateRow(msgspec.Struct, frozen=True):
    """A state, and the epoch and the shard in which it was committed."""

    version: int
    epoch: int
    data: bytes
    shard: ShardId | None = None
    """`None`: written without asking who owns what."""


class StateTable:
    """One row per entity that has a state."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rows: dict[EntityKey, StateRow] = {}
        self._written_at: dict[EntityKey, float] = {}

    def load(self, key: EntityKey) -> StoredState | None:
        """Return an entity's committed state."""
        row = self._rows.get(key)
        return None if row is None else StoredState(row.version, row.data, self.age(key), row.shard)

    def age(self, key: EntityKey) -> float:
        """Return how many seconds ago an entity's state was written; infinite where there is none."""
        written_at = self._written_at.get(key)
        return math.inf if written_at is None else max(self._clock.time() - written_at, 0.0)

    def holds(self, key: EntityKey, row: StateRow) -> bool:
        """Whether this very row was written last."""
        return self._rows.get(key) == row

    def check(self, key: EntityKey, row: StateRow) -> None:
        """Do nothing if `row` may be written next.

        Raises:
            VersionConflict: another version is stored.
        """
        stored = self._rows.get(key)
        if (stored.version if stored else 0) != row.version - 1:
            raise VersionConflict(f"{'/'.join(key)}: version {row.version - 1} is not the stored one")

    def move(self, key: EntityKey, source: ShardId, target: ShardId) -> None:
        """Have a state of `source` be one of `target`, where any epoch may follow."""
        row = self._rows.get(key)
        if row is not None and row.shard == source:
            self._rows[key] = msgspec.structs.replace(row, epoch=0, shard=target)

    def write(self, key: EntityKey, row: StateRow, age: float = 0.0) -> None:
        """Write what was checked, as if that was `age` seconds ago."""
        self._rows[key] = row
        self._written_at[key] = self._clock.time() - age

    def forget(self, key: EntityKey) -> None:
        """Delete an entity's state; nothing happens if it has none."""
        self._rows.pop(key, None)
        self._written_at.pop(key, None)
