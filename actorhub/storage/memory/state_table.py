"""The committed states of a memory store."""

import msgspec

from actorhub.storage.ports import StoredState, VersionConflict

EntityKey = tuple[str, str]
"""Type and id."""


class StateRow(msgspec.Struct, frozen=True):
    """A state and the epoch at which it was committed."""

    version: int
    epoch: int
    data: bytes


class StateTable:
    """One row per entity that has a state."""

    def __init__(self) -> None:
        self._rows: dict[EntityKey, StateRow] = {}

    def load(self, key: EntityKey) -> StoredState | None:
        """Return an entity's committed state."""
        row = self._rows.get(key)
        return None if row is None else StoredState(row.version, row.data)

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

    def write(self, key: EntityKey, row: StateRow) -> None:
        """Write what was checked."""
        self._rows[key] = row
