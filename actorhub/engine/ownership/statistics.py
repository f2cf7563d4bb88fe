"""What is counted of a runner's ownership."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnershipStatistics:
    """The state of a runner's ownership, and what happened since it started."""

    shards_owned: int
    shards_acquiring: int
    shards_draining: int
    takeovers: int
    """How many shards were granted."""
    last_takeover_seconds: float
    """Until the last grant, from the suspicion that led to it, or else from the start of the acquisition."""
    releases: int
    """How many shards were released gracefully."""
    sessions_opened: int
    sessions_lost: int
    self_fenced: int
    """How often this runner fenced itself because its lease ran out."""
    members: int
    suspects: int
    registered: int
    """Runners in the table, silent ones included."""
