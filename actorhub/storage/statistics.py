"""What a storage counts."""

import dataclasses

import msgspec


class StorageStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the storage was made."""

    commits: int
    """Entity states written."""
    commit_groups: int
    """Round trips that wrote them, repeats included."""
    refused: int
    """Commits that were refused: `Fenced` and `VersionConflict`."""
    failed: int
    """Commits and loads that ended with another `PersistenceError`."""
    loads: int
    """Entity states looked up, found or not."""
    load_groups: int
    reconnects: int
    """Connections for commits and loads that had to be made anew."""
    waiting: int
    """Commits and loads whose future is not done yet."""


@dataclasses.dataclass(slots=True)
class StorageCounters:
    """The running counts behind `StorageStatistics`."""

    commits: int = 0
    commit_groups: int = 0
    refused: int = 0
    failed: int = 0
    loads: int = 0
    load_groups: int = 0
    reconnects: int = 0

    def snapshot(self, waiting: int) -> StorageStatistics:
        """Return the counts as they are now, and how many requests wait."""
        return StorageStatistics(**dataclasses.asdict(self), waiting=waiting)
