"""Singletons and their schedules on Postgres."""

from collections.abc import Callable, Sequence

from typing_extensions import override

from actorhub.storage.ports import Fenced
from actorhub.storage.postgres.connections import Connections
from actorhub.storage.postgres.control import Lane
from actorhub.storage.postgres.singleton_rows import (
    clock_of,
    execution_json,
    schedule_json,
    schedule_row,
    singleton_row,
)
from actorhub.storage.singleton_ports import (
    Execution,
    Leadership,
    ScheduleEdit,
    ScheduleRow,
    SingletonRow,
    SingletonStore,
)
from actorhub.storage.statistics import StorageCounters


class PostgresSingletons(SingletonStore):
    """A `SingletonStore` in the namespace's schema."""

    def __init__(
        self, connections: Connections, fence_of: Callable[[str], int | None], counters: StorageCounters
    ) -> None:
        self._fence_of = fence_of
        self._counters = counters
        self._control = Lane(connections)

    @override
    async def lead(self, leadership: Leadership, address: str, state_ttl: float | None) -> tuple[SingletonRow, float]:
        arguments = (leadership.singleton, leadership.entity_id, address, state_ttl)
        rows = await self._control.fetch(
            "lead a singleton", "lead_singleton", *self._fence_columns(leadership), *arguments
        )
        self._check(leadership, owned=bool(rows))
        return singleton_row(rows[0]), clock_of(rows)

    @override
    async def record(
        self, leadership: Leadership, execution: Execution, *, heartbeat: bool, leaves: bool = False
    ) -> float:
        arguments = (leadership.singleton, leadership.entity_id, execution_json(execution), heartbeat, leaves)
        rows = await self._control.fetch(
            "record how a singleton is", "record_singleton", *self._fence_columns(leadership), *arguments
        )
        self._check(leadership, owned=rows[0]["owned"])
        return clock_of(rows)

    @override
    async def singletons(self) -> tuple[Sequence[SingletonRow], float]:
        rows = await self._control.fetch("list singletons", "list_singletons")
        return [singleton_row(row) for row in rows if row["singleton"] is not None], clock_of(rows)

    @override
    async def schedules(self, singleton: str | None = None) -> tuple[Sequence[ScheduleRow], float]:
        rows = await self._control.fetch("list schedules", "list_schedules", singleton)
        return [schedule_row(row) for row in rows if row["singleton"] is not None], clock_of(rows)

    @override
    async def keep_schedule(self, leadership: Leadership, row: ScheduleRow) -> ScheduleRow:
        rows = await self._control.fetch(
            "keep a schedule", "keep_schedule", *self._fence_columns(leadership), schedule_json(row)
        )
        self._check(leadership, owned=bool(rows))
        return schedule_row(rows[0])

    @override
    async def remove_schedules(self, leadership: Leadership, names: Sequence[str]) -> None:
        rows = await self._control.fetch(
            "remove schedules",
            "remove_schedules",
            *self._fence_columns(leadership),
            leadership.singleton,
            list(names),
        )
        self._check(leadership, owned=rows[0][0])

    @override
    async def edit_schedule(self, singleton: str, name: str, edit: ScheduleEdit) -> ScheduleRow | None:
        changes = (edit.paused, edit.expression, edit.timezone, edit.reset)
        rows = await self._control.fetch("edit a schedule", "edit_schedule", singleton, name, *changes)
        return schedule_row(rows[0]) if rows else None

    @override
    async def remove_abandoned(self) -> int:
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
                f"{leadership.shard} no longer belongs to {leadership.incarnation} at epoch {leadership.epoch}"
            )
