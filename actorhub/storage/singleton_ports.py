"""What the engine asks of a store for singletons: who leads them, how they are, and their schedules.

Times are seconds since the Unix epoch, by the store's clock; those that the engine writes come from its idea of that.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from actorhub.core.address import ShardId


class Leadership(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads a singleton; every write of the leader names it, and is refused once it no longer holds."""

    singleton: str
    """The name of its entity type."""
    entity_id: str
    shard: ShardId
    epoch: int
    incarnation: str


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader knows of its singleton; it replaces what is stored."""

    executions: int = 0
    """Runs of its schedules and starts of its `run`, of all leaders."""
    last_execution: str = ""
    """What ran last: a schedule's name, or `run`."""
    last_execution_at: float | None = None
    """When that began; `None`: nothing ever ran."""
    last_duration: float | None = None
    """Seconds; `None` while the first one runs."""
    last_error: str = ""
    """Type and text of the last error, until a later execution succeeds."""
    last_error_at: float | None = None
    state_errors: int = 0
    """How often its state could not be loaded, decoded or stored."""
    state_error: str = ""
    """The last of these: a reason of `SingletonError`, then details."""
    starts: int = 0
    """How many leaders in a row began to start it and have not sent a heartbeat since: they may have died of it."""
    body: str = ""
    """What its `run` does: `running`, `returned`, `failed` (it will start again), or nothing where it has none."""


class SingletonRow(msgspec.Struct, frozen=True, kw_only=True):
    """All that is stored of a singleton."""

    singleton: str
    entity_id: str
    shard: ShardId
    epoch: int
    incarnation: str
    """Of its last leader."""
    leader: str
    """That runner's address; empty after it left gracefully."""
    since: float
    """When it began to lead."""
    heartbeat_at: float | None = None
    """When it last showed that it is alive; `None`: never."""
    state_ttl: float | None = None
    """Seconds after which a state that was not written is forgotten."""
    execution: Execution = Execution()


class ScheduleRow(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule of a singleton."""

    singleton: str
    name: str
    """Unique in the singleton."""
    declared: str
    """`expression|timezone` as the code has them, to notice that they changed there."""
    expression: str
    timezone: str
    created_at: float
    paused: bool = False
    edited: bool = False
    """Somebody set expression or time zone at run time: the code's are ignored until they change."""
    revision: int = 0
    """Grows with each edit; messages of earlier revisions do not run."""
    planned_from: float | None = None
    """Since when its fire times count: it was created, changed or resumed then. `None`: the leader has not set it."""
    next_at: float | None = None
    """The fire time whose message is stored, or will be; `None`: not planned yet, or paused."""
    last_at: float | None = None
    """The fire time that ran last, whatever became of it."""
    last_started_at: float | None = None
    last_finished_at: float | None = None
    last_duration: float | None = None
    last_error: str = ""
    runs: int = 0
    """Runs that succeeded."""
    failures: int = 0
    """Fire times given up after their last attempt."""
    failures_in_a_row: int = 0
    skipped: int = 0
    """Fire times that were not run."""
    last_skip: str = ""
    """Why the last ones were not, and which."""


class ScheduleEdit(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator changes; `None` leaves it as it is."""

    paused: bool | None = None
    expression: str | None = None
    timezone: str | None = None
    reset: bool = False
    """Go back to what the code says."""


class SingletonStore(Protocol):
    """Singletons and schedules. All methods raise `PersistenceError` when the store fails.

    Methods of leaders raise `Fenced` where the shard belongs to another owner or epoch: nothing was written.
    """

    async def lead(self, leadership: Leadership, address: str, state_ttl: float | None) -> tuple[SingletonRow, float]:
        """Write who leads from now on; return what is stored, of earlier leaders too, and the store's clock.

        A leader that calls it again keeps its `since`.

        Raises:
            Fenced: the shard was lost.
        """
        ...

    async def record(
        self, leadership: Leadership, execution: Execution, *, heartbeat: bool, leaves: bool = False
    ) -> float:
        """Write what the leader knows; return the store's clock.

        Args:
            leadership: Of the caller.
            execution: Replaces what is stored; of its errors a store may keep the beginning alone.
            heartbeat: The singleton is alive: write the time.
            leaves: The leader stops gracefully: nobody leads from now on.

        Raises:
            Fenced: the shard was lost.
        """
        ...

    async def singletons(self) -> tuple[Sequence[SingletonRow], float]:
        """Return every singleton that ever had a leader, by name, and the store's clock."""
        ...

    async def schedules(self, singleton: str | None = None) -> tuple[Sequence[ScheduleRow], float]:
        """Return every schedule, or those of one singleton, by singleton and name, and the store's clock."""
        ...

    async def keep_schedule(self, leadership: Leadership, row: ScheduleRow) -> ScheduleRow:
        """Write a schedule as its leader knows it; return what is stored now.

        What operators decide (`paused`, `edited`, `expression`, `timezone`, `revision`) is taken from the store where
        `row.revision` is not the stored one: then nothing is written, and the caller goes by what is returned.

        Raises:
            Fenced: the shard was lost.
        """
        ...

    async def remove_schedules(self, leadership: Leadership, names: Sequence[str]) -> None:
        """Delete schedules that are no longer declared in the code.

        Raises:
            Fenced: the shard was lost.
        """
        ...

    async def edit_schedule(self, singleton: str, name: str, edit: ScheduleEdit) -> ScheduleRow | None:
        """Change a schedule on behalf of an operator, whoever leads; its revision grows, and it is planned again.

        Returns what is stored now; `None`: there is no such schedule. `reset` puts the declared expression and time
        zone back.
        """
        ...

    async def remove_abandoned(self) -> int:
        """Delete singletons with a `state_ttl` that nobody led, and whose state nobody wrote, for longer than that.

        A leader that is registered and was heard of in the last seconds still leads. State, the checkpoints of `run`,
        schedules and the row itself go; return how many singletons there were.
        """
        ...
