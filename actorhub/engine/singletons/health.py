"""How a led singleton and its schedules are, as values. Times are seconds since the Unix epoch by the store's clock."""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

HEARTBEAT: Final = 30.0
"""Seconds between the heartbeats of a led singleton, whatever its schedules."""
STALE_AFTER: Final = 2 * HEARTBEAT
"""Seconds without a heartbeat after which a singleton counts as stale."""


class ScheduleHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule of a singleton."""

    name: str
    expression: str
    timezone: str
    paused: bool
    next_at: float | None
    """The instant that it waits for; `None`: not planned yet, or paused."""
    last_at: float | None
    """The instant that ran last; `None`: none ever did."""
    status: Literal["healthy", "overdue", "never executed", "paused"]
    """`overdue`: nothing ran for twice its expected interval."""
    runs: int
    """Runs that succeeded."""
    failures: int
    """Instants given up after their last attempt."""
    skipped: int
    """Instants that were not run."""


class SingletonHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One singleton that this runner leads, or is about to."""

    name: str
    entity_id: str
    shard: str
    """`group:number`."""
    epoch: int
    since: float
    """When this runner began to lead it."""
    heartbeat_at: float | None
    """The last heartbeat, of an earlier leader too; `None`: there never was one."""
    is_stale: bool
    """No heartbeat for 60 seconds: see `is_stale`."""
    state: Literal["starting", "leading", "failed", "stopping"]
    body: str
    """What its `run` does: `running`, `returned`, `failed` (it will start again), or nothing where it has none."""
    executions: int
    """Runs of its schedules and starts of its `run`, of all leaders."""
    last_execution: str
    """What ran last: a schedule's name, or `run`."""
    last_execution_at: float | None
    last_duration: float | None
    """Seconds."""
    last_error: str
    state_errors: int
    """How often its state could not be loaded, decoded or stored."""
    status: Literal["healthy", "stale", "never executed", "unhealthy"]
    schedules: Sequence[ScheduleHealth]


class RunnerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a runner is."""

    serving: bool
    """It takes work, and leads no stale singleton."""
    reason: str
    """Why it is not serving, in a sentence; empty when it is."""
    runner: str
    """Its address."""
    incarnation: str
    version: str
    shards_owned: int
    live_runners: int
    """As far as it knows."""
    singletons: Sequence[SingletonHealth] = ()
    """Those that it leads."""


def is_stale(*, heartbeat_at: float | None, since: float, now: float) -> bool:
    """Whether a singleton's last sign of life is too old.

    Strict: an old heartbeat of the leader before counts right after a move, until the new one has shown itself. Where
    there never was one, the time since the leader began counts.
    """
    return now - (since if heartbeat_at is None else heartbeat_at) > STALE_AFTER
