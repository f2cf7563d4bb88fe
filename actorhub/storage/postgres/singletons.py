"""Singletons and their schedules on Postgres."""

from collections.abc import Callable, Sequence

from actorhub.storage.ports import Fenced
from actorhub.storage.postgres.connection import Database
from actorhub.storage.postgres.control import ControlConnection
from actorhub.storage.postgres.singleton_rows import (
    clock_of,
    execution_json,
    schedule_json,
    schedule_row,
    singleton_row,
)
from actorhub.storage.singleton_ports import Execution, Leadership, ScheduleEdit, ScheduleRow, SingletonRow
from actorhub.storage.statistics import StorageCounters


class PostgresSingletons:
    """A `SingletonStore` in the namespace's schema. Its connection is made when it is first needed."""

    def __init__(self, database: Database, fence_of: Callable[[str], int | None], counters: StorageCounters) -> None:
        self._fence_of = fence_of
        self._counters = counters
        self._control = ControlConnection(database, "actorhub singletons")

    async def aclose(self) -> None:
        """Let go of the connection. Can be called twice."""
        await self._control.aclose()

    async def lead(self, leadership: Leadership, address: str, state_ttl: float | None) -> tuple[SingletonRow, float]:
        """Write who leads from now on; return what is stored, of earlier leaders too, and the store's clock.

        Raises:
            Fenced: the shard was lost.
        """
        arguments = (leadership.singleton, leadership.entity_id, address, state_ttl)
        rows = await self._control.fetch(
            "lead a singleton", "lead_singleton", *self._fence_columns(leadership), *arguments
        )
        self._check(leadership, owned=bool(rows))
        return singleton_row(rows[0]), clock_of(rows)

    async def note(
        self, leadership: Leadership, execution: Execution, *, heartbeat: bool, leaves: bool = False
    ) -> float:
        """Write what the leader knows; return the store's clock.

        Args:
            leadership: Of the caller.
            execution: Replaces what is stored; of its errors the beginning is kept.
            heartbeat: The singleton is alive: write the time.
            leaves: The leader stops gracefully: nobody leads from now on.

        Raises:
            Fenced: the shard was lost.
        """
        arguments = (leadership.singleton, leadership.entity_id, execution_json(execution), heartbeat, leaves)
        rows = await self._control.fetch(
            "note how a singleton is", "note_singleton", *self._fence_columns(leadership), *arguments
        )
        self._check(leadership, owned=rows[0]["noted"])
        return clock_of(rows)

    async def singletons(self) -> tuple[Sequence[SingletonRow], float]:
        """Return every singleton that ever had a leader, by name, and the store's clock."""
        rows = await self._control.fetch("list singletons", "list_singletons")
        return [singleton_row(row) for row in rows if row["singleton"] is not None], clock_of(rows)

    async def schedules(self, singleton: str | None = None) -> tuple[Sequence[ScheduleRow], float]:
        """Return every schedule, or those of one singleton, by singleton and name, and the store's clock."""
        rows = await self._control.fetch("list schedules", "list_schedules", singleton)
        return [schedule_row(row) for row in rows if row["singleton"] is not None], clock_of(rows)

    async def keep_schedule(self, leadership: Leadership, row: ScheduleRow) -> ScheduleRow:
        """Write a schedule as its leader knows it, unless it was edited meanwhile; return what is stored now.

        Raises:
            Fenced: the shard was lost.
        """
        rows = await self._control.fetch(
            "keep a schedule", "keep_schedule", *self._fence_columns(leadership), schedule_json(row)
        )
        self._check(leadership, owned=bool(rows))
        return schedule_row(rows[0])

    async def remove_schedules(self, leadership: Leadership, names: Sequence[str]) -> None:
        """Delete schedules that the code has no more.

        Raises:
            Fenced: the shard was lost.
        """
        rows = await self._control.fetch(
            "remove schedules",
            "remove_schedules",
            *self._fence_columns(leadership),
            leadership.singleton,
            list(names),
        )
        self._check(leadership, owned=rows[0][0])

    async def edit_schedule(self, singleton: str, name: str, edit: ScheduleEdit) -> ScheduleRow | None:
        """Change a schedule on behalf of an operator, whoever leads; its revision grows, its `next_at` is planned anew.

        Returns what is stored now; `None`: there is no such schedule.
        """
        changes = (edit.paused, edit.expression, edit.timezone, edit.reset)
        rows = await self._control.fetch("edit a schedule", "edit_schedule", singleton, name, *changes)
        return schedule_row(rows[0]) if rows else None

    async def remove_abandoned(self) -> int:
        """Delete singletons with a `state_ttl` that nobody led, and whose state nobody wrote, for longer than that."""
        rows = await self._control.fetch("remove abandoned singletons", "remove_abandoned")
        return int(rows[0][0])

    def _fence_columns(self, leadership: Leadership) -> tuple[object, ...]:
        shard = leadership.shard
        fence = self._fence_of(leadership.incarnation)
        return fence, leadership.incarnation, shard.group, shard.number, leadership.epoch

    def _check(self, leadership: Leadership, *, owned: bool) -> None:
        if not owned:
            self._counters.refused += 1
            raise Fenced(
                f"{leadership.shard} does not belong to {leadership.incarnation} at epoch {leadership.epoch} any more"
            )
