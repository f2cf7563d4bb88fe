"""The singletons and schedules of a memory store: what a server would keep."""

from collections.abc import Callable, Sequence

import msgspec

from actorhub.core.clock import Clock
from actorhub.storage.checkpoint_ports import BODY, Scope
from actorhub.storage.memory.checkpoint_table import CheckpointTable
from actorhub.storage.memory.message_table import Owns
from actorhub.storage.memory.state_table import StateTable
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import Execution, Leadership, ScheduleEdit, ScheduleRow, SingletonRow

_changed = msgspec.structs.replace


class SingletonTable:
    """Every method is a transaction: it happens in one step of the loop, and checks everything before it writes.

    Args:
        clock: Source of time.
        states: Where the singletons' states are.
        checkpoints: Where the checkpoints of their runs are.
        owns: Whether an incarnation owns a shard at an epoch.
        is_live: Whether an incarnation was heard of just now.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        states: StateTable,
        checkpoints: CheckpointTable,
        owns: Owns,
        is_live: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self._states = states
        self._checkpoints = checkpoints
        self._owns = owns
        self._is_live = is_live
        self._rows: dict[str, SingletonRow] = {}
        self._schedules: dict[tuple[str, str], ScheduleRow] = {}

    def now(self) -> float:
        """Return the store's clock."""
        return self._clock.time()

    def lead(self, leadership: Leadership, address: str, state_ttl: float | None) -> SingletonRow:
        """Write who leads from now on; return what is stored.

        Raises:
            Fenced: the shard was lost.
        """
        self._check_owner(leadership)
        known = self._rows.get(leadership.singleton)
        leads_already = known is not None and known.leader and _led_by(known) == _led_by(leadership)
        row = SingletonRow(
            singleton=leadership.singleton,
            entity_id=leadership.entity_id,
            shard=leadership.shard,
            epoch=leadership.epoch,
            incarnation=leadership.incarnation,
            leader=address,
            since=known.since if known is not None and leads_already else self._clock.time(),
            heartbeat_at=None if known is None else known.heartbeat_at,
            state_ttl=state_ttl,
            execution=Execution() if known is None else known.execution,
        )
        self._rows[leadership.singleton] = row
        return row

    def record(self, leadership: Leadership, execution: Execution, *, heartbeat: bool, leaves: bool) -> None:
        """Write what the leader knows.

        Raises:
            Fenced: the shard was lost.
        """
        self._check_owner(leadership)
        row = self._rows.get(leadership.singleton)
        if row is not None:
            self._rows[leadership.singleton] = _changed(
                row,
                execution=execution,
                heartbeat_at=self._clock.time() if heartbeat else row.heartbeat_at,
                leader="" if leaves else row.leader,
            )

    def singletons(self) -> Sequence[SingletonRow]:
        """Return every singleton that ever had a leader, by name."""
        return [row for _, row in sorted(self._rows.items())]

    def schedules(self, singleton: str | None) -> Sequence[ScheduleRow]:
        """Return every schedule, or those of one singleton, by singleton and name."""
        return [row for key, row in sorted(self._schedules.items()) if singleton in (None, key[0])]

    def keep_schedule(self, leadership: Leadership, row: ScheduleRow) -> ScheduleRow:
        """Write a schedule unless it was edited meanwhile; return what is stored now.

        Raises:
            Fenced: the shard was lost.
        """
        self._check_owner(leadership)
        key = (row.singleton, row.name)
        stored = self._schedules.get(key)
        if stored is None or stored.revision == row.revision:
            self._schedules[key] = row if stored is None else _changed(row, created_at=stored.created_at)
        return self._schedules[key]

    def remove_schedules(self, leadership: Leadership, names: Sequence[str]) -> None:
        """Delete schedules that are no longer declared in the code.

        Raises:
            Fenced: the shard was lost.
        """
        self._check_owner(leadership)
        for name in names:
            self._schedules.pop((leadership.singleton, name), None)

    def edit_schedule(self, singleton: str, name: str, edit: ScheduleEdit) -> ScheduleRow | None:
        """Change a schedule on behalf of an operator; return what is stored now, `None` if there is none."""
        row = self._schedules.get((singleton, name))
        if row is None:
            return None
        expression, timezone, edited = row.expression, row.timezone, row.edited
        if edit.reset:
            expression, _, timezone = row.declared.partition("|")
            edited = False
        self._schedules[singleton, name] = row = _changed(
            row,
            paused=row.paused if edit.paused is None else edit.paused,
            expression=expression if edit.expression is None else edit.expression,
            timezone=timezone if edit.timezone is None else edit.timezone,
            edited=edited or edit.expression is not None or edit.timezone is not None,
            revision=row.revision + 1,
            planned_from=None,
            next_at=None,
        )
        return row

    def remove_abandoned(self) -> int:
        """Delete singletons that nobody led, and whose state nobody wrote, for longer than their state is kept."""
        abandoned = [row for row in self._rows.values() if self._is_abandoned(row)]
        for row in abandoned:
            self._states.forget((row.singleton, row.entity_id))
            self._checkpoints.forget_body(Scope(row.singleton, row.entity_id, BODY))
            self._schedules = {key: kept for key, kept in self._schedules.items() if key[0] != row.singleton}
            del self._rows[row.singleton]
        return len(abandoned)

    def _is_abandoned(self, row: SingletonRow) -> bool:
        if row.state_ttl is None or (row.leader and self._is_live(row.incarnation)):
            return False
        last_seen = row.since if row.heartbeat_at is None else max(row.since, row.heartbeat_at)
        silent_for = self._clock.time() - last_seen
        return min(silent_for, self._states.age((row.singleton, row.entity_id))) > row.state_ttl

    def _check_owner(self, leadership: Leadership) -> None:
        if not self._owns(leadership.incarnation, leadership.shard, leadership.epoch):
            raise Fenced(
                f"{leadership.shard} no longer belongs to {leadership.incarnation} at epoch {leadership.epoch}"
            )


def _led_by(row: SingletonRow | Leadership) -> tuple[str, int]:
    return row.incarnation, row.epoch
