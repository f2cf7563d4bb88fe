"""The health of runners, singletons and schedules, as values.

Times are in Unix seconds by the store's clock where nothing else is said.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from actorhub.storage.singleton_ports import Execution, Leadership

HEARTBEAT: Final = 30.0
"""Seconds between the heartbeats of a led singleton. They do not depend on its schedules."""
STALE_AFTER: Final = 2 * HEARTBEAT
"""Seconds without a heartbeat after which a singleton counts as stale."""


class ScheduleHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule of a singleton."""

    name: str
    expression: str
    timezone: str
    paused: bool
    next_at: float | None
    """The next fire time; `None` if it is not planned yet, or the schedule is paused."""
    last_at: float | None
    """The last fire time that ran; `None` if none did."""
    status: Literal["healthy", "overdue", "never executed", "paused"]
    """`overdue`: nothing has run for twice the expected interval."""
    runs: int
    """Runs that succeeded."""
    failures: int
    """Fire times that were given up after their last attempt."""
    skipped: int
    """Fire times that were skipped."""


class SingletonHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One singleton that this runner leads, or is about to."""

    name: str
    entity_id: str
    shard: str
    """`group:number`."""
    epoch: int
    since: float
    """When this runner became its leader."""
    heartbeat_at: float | None
    """The last heartbeat, possibly an earlier leader's; `None` if there never was one."""
    is_stale: bool
    """Whether there was no heartbeat for 60 seconds; see `is_stale`."""
    state: Literal["starting", "leading", "failed", "stopping"]
    body: str
    """The state of its `run`: `running`, `returned`, `failed` (it will be started again), or empty if it has none."""
    executions: int
    """Runs of its schedules and starts of its `run`, under all leaders."""
    last_execution: str
    """What ran last: the name of a schedule, or `run`."""
    last_execution_at: float | None
    last_duration: float | None
    """Seconds."""
    last_error: str
    state_errors: int
    """How often its state could not be loaded, decoded or stored."""
    status: Literal["healthy", "stale", "never executed", "unhealthy"]
    schedules: Sequence[ScheduleHealth]


class UnreachedRunner(msgspec.Struct, frozen=True, kw_only=True):
    """A live runner that a process has not been able to connect to for some seconds."""

    address: str
    incarnation: str
    since: float
    """When the first attempt failed, by the clock of the process."""
    reason: str
    """Why the last attempt failed."""
    via: str
    """The address of the runner through which calls go instead; empty: there is no way, and they wait."""


class RunnerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The health of a runner."""

    serving: bool
    """Whether it takes work and leads no stale singleton."""
    reason: str
    """Why it is not serving; empty if it is."""
    runner: str
    """Its address."""
    incarnation: str
    version: str
    shards_owned: int
    live_runners: int
    """How many runners are alive, as far as it knows."""
    singletons: Sequence[SingletonHealth] = ()
    """The singletons that it leads."""
    unreached: Sequence[UnreachedRunner] = ()
    """The live runners that it cannot connect to. It is serving nevertheless."""
    address_problem: str = ""
    """Why nobody can connect to it at the address that it advertises; empty: somebody can, or that is not known yet."""
    via: str = ""
    """Where a client has asked: the address of the runner through which it did, if it cannot connect to this one."""
    lost: str = ""
    """What the database lost last, since this runner started, of what it had acknowledged to it; empty: nothing."""


def health_of(
    leadership: Leadership,
    execution: Execution,
    *,
    since: float,
    heartbeat_at: float | None,
    stale: bool,
    state: Literal["starting", "leading", "failed", "stopping"],
    schedules: Sequence[ScheduleHealth],
    has_main_loop: bool,
) -> SingletonHealth:
    """Return the health of a singleton from what its leader knows."""
    never = execution.last_execution_at is None and bool(schedules or has_main_loop)
    return SingletonHealth(
        name=leadership.singleton,
        entity_id=leadership.entity_id,
        shard=str(leadership.shard),
        epoch=leadership.epoch,
        since=since,
        heartbeat_at=heartbeat_at,
        is_stale=stale,
        state=state,
        body=execution.body,
        executions=execution.executions,
        last_execution=execution.last_execution,
        last_execution_at=execution.last_execution_at,
        last_duration=execution.last_duration,
        last_error=execution.last_error,
        state_errors=execution.state_errors,
        status="stale"
        if stale
        else "unhealthy"
        if execution.body == "failed" or any(schedule.status == "overdue" for schedule in schedules)
        else "never executed"
        if never
        else "healthy",
        schedules=schedules,
    )


def is_stale(*, heartbeat_at: float | None, since: float, now: float) -> bool:
    """Return whether a singleton's last sign of life is too old.

    An earlier leader's heartbeat counts. So a singleton stays stale right after a move until its new leader has sent a
    heartbeat; being taken over is not a sign of life. If there never was a heartbeat, the start of the leader counts.
    """
    return now - (since if heartbeat_at is None else heartbeat_at) > STALE_AFTER
