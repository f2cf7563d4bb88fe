"""What a storage counts."""

import dataclasses

import msgspec


class StorageStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the storage was made."""

    commits: int
    """Entity states written."""
    commit_batches: int
    """Round trips that wrote them, repeats included."""
    refused: int
    """Writes that were refused, such as by the fence."""
    failed: int
    """Requests that ended with another `PersistenceError`."""
    loads: int
    """Entity states looked up, found or not."""
    load_batches: int
    reconnects: int
    """Connections for batched requests that had to be made again."""
    waiting: int
    """Requests whose future is not done yet."""
    stored: int = 0
    """Durable messages stored, those in outboxes left out."""
    started: int = 0
    """Runs of durable messages counted before they started."""
    settled: int = 0
    """Handler runs committed together with their messages."""
    failed_runs: int = 0
    """Runs recorded as failed, to be tried again or as dead letters."""
    message_batches: int = 0
    """Round trips for all of these, repeats included."""
    acknowledged: int = 0
    """How far the store's log had come before the last write that was acknowledged; 0: none was, or it is not known."""


@dataclasses.dataclass(slots=True)
class StorageCounters:
    """The running counts behind `StorageStatistics`."""

    commits: int = 0
    commit_batches: int = 0
    refused: int = 0
    failed: int = 0
    loads: int = 0
    load_batches: int = 0
    reconnects: int = 0
    stored: int = 0
    started: int = 0
    settled: int = 0
    failed_runs: int = 0
    message_batches: int = 0
    acknowledged: int = 0

    def acknowledge(self, position: int | None) -> None:
        """Take note that a write was acknowledged, which came in the store's log after `position`."""
        if position is not None and position > self.acknowledged:
            self.acknowledged = position

    def snapshot(self, waiting: int) -> StorageStatistics:
        """Return the counts as they are now, and how many requests wait."""
        return StorageStatistics(**dataclasses.asdict(self), waiting=waiting)
