"""One process's access to the singletons of a memory store."""

import asyncio
import contextlib
from collections.abc import Callable, Generator, Sequence

from typing_extensions import override

from actorhub.storage.memory.singleton_table import SingletonTable
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import (
    Execution,
    Leadership,
    ScheduleEdit,
    ScheduleRow,
    SingletonRow,
    SingletonStore,
)
from actorhub.storage.statistics import StorageCounters


class MemorySingletons(SingletonStore):
    """A `SingletonStore` on a memory store.

    Args:
        table: The server's side.
        counters: Where refused writes are counted.
        check_open: Raises `PersistenceError` while nothing can be done.
    """

    def __init__(self, table: SingletonTable, counters: StorageCounters, check_open: Callable[[], None]) -> None:
        self._table = table
        self._counters = counters
        self._check_open = check_open

    @override
    async def lead(self, leadership: Leadership, address: str, state_ttl: float | None) -> tuple[SingletonRow, float]:
        table = await self._reached()
        with self._counted():
            return table.lead(leadership, address, state_ttl), table.now()

    @override
    async def record(
        self, leadership: Leadership, execution: Execution, *, heartbeat: bool, leaves: bool = False
    ) -> float:
        table = await self._reached()
        with self._counted():
            table.record(leadership, execution, heartbeat=heartbeat, leaves=leaves)
        return table.now()

    @override
    async def singletons(self) -> tuple[Sequence[SingletonRow], float]:
        table = await self._reached()
        return table.singletons(), table.now()

    @override
    async def schedules(self, singleton: str | None = None) -> tuple[Sequence[ScheduleRow], float]:
        table = await self._reached()
        return table.schedules(singleton), table.now()

    @override
    async def keep_schedule(self, leadership: Leadership, row: ScheduleRow) -> ScheduleRow:
        table = await self._reached()
        with self._counted():
            return table.keep_schedule(leadership, row)

    @override
    async def remove_schedules(self, leadership: Leadership, names: Sequence[str]) -> None:
        table = await self._reached()
        with self._counted():
            table.remove_schedules(leadership, names)

    @override
    async def edit_schedule(self, singleton: str, name: str, edit: ScheduleEdit) -> ScheduleRow | None:
        return (await self._reached()).edit_schedule(singleton, name, edit)

    @override
    async def remove_abandoned(self) -> int:
        return (await self._reached()).remove_abandoned()

    async def _reached(self) -> SingletonTable:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._table

    @contextlib.contextmanager
    def _counted(self) -> Generator[None]:
        try:
            yield
        except Fenced:
            self._counters.refused += 1
            raise
