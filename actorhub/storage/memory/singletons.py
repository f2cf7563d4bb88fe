"""One process's access to the singletons of a memory store."""

import asyncio
import contextlib
from collections.abc import Callable, Generator, Sequence

from actorhub.storage.memory.singleton_table import SingletonTable
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import Execution, Leadership, ScheduleEdit, ScheduleRow, SingletonRow
from actorhub.storage.statistics import StorageCounters


class MemorySingletons:
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

    async def lead(self, leadership: Leadership, address: str, state_ttl: float | None) -> tuple[SingletonRow, float]:
        """Write who leads from now on; return what is stored, of earlier leaders too, and the store's clock.

        Raises:
            Fenced: the shard was lost.
        """
        table = await self._reached()
        with self._counted():
            return table.lead(leadership, address, state_ttl), table.now()

    async def note(
        self, leadership: Leadership, execution: Execution, *, heartbeat: bool, leaves: bool = False
    ) -> float:
        """Write what the leader knows; return the store's clock.

        Args:
            leadership: Of the caller.
            execution: Replaces what is stored.
            heartbeat: The singleton is alive: write the time.
            leaves: The leader stops gracefully: nobody leads from now on.

        Raises:
            Fenced: the shard was lost.
        """
        table = await self._reached()
        with self._counted():
            table.note(leadership, execution, heartbeat=heartbeat, leaves=leaves)
        return table.now()

    async def singletons(self) -> tuple[Sequence[SingletonRow], float]:
        """Return every singleton that ever had a leader, by name, and the store's clock."""
        table = await self._reached()
        return table.singletons(), table.now()

    async def schedules(self, singleton: str | None = None) -> tuple[Sequence[ScheduleRow], float]:
        """Return every schedule, or those of one singleton, by singleton and name, and the store's clock."""
        table = await self._reached()
        return table.schedules(singleton), table.now()

    async def keep_schedule(self, leadership: Leadership, row: ScheduleRow) -> ScheduleRow:
        """Write a schedule as its leader knows it, unless it was edited meanwhile; return what is stored now.

        Raises:
            Fenced: the shard was lost.
        """
        table = await self._reached()
        with self._counted():
            return table.keep_schedule(leadership, row)

    async def remove_schedules(self, leadership: Leadership, names: Sequence[str]) -> None:
        """Delete schedules that the code has no more.

        Raises:
            Fenced: the shard was lost.
        """
        table = await self._reached()
        with self._counted():
            table.remove_schedules(leadership, names)

    async def edit_schedule(self, singleton: str, name: str, edit: ScheduleEdit) -> ScheduleRow | None:
        """Change a schedule on behalf of an operator, whoever leads; its revision grows, its `next_at` is planned anew.

        Returns what is stored now; `None`: there is no such schedule.
        """
        return (await self._reached()).edit_schedule(singleton, name, edit)

    async def remove_abandoned(self) -> int:
        """Delete singletons with a `state_ttl` that nobody led, and whose state nobody wrote, for longer than that."""
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
