"""Which durable messages are in memory, and where each of them is.

The store is the truth, and only the shard's owner works on its rows: what is in memory here is claimed by (incarnation,
epoch), and losing the shard simply forgets it. Every move of a message from one `Place` to another is made here, except
that `attempts` moves one that has its turn from `MAILBOX` to `STARTING` to `RUNNING`.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from actorhub.core.envelope import TELL
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.model.durable_message import DurableMessage, Place
from actorhub.engine.model.records import DONE, QUEUED, SENT, Cell, HostedShard, HostedType, Message
from actorhub.engine.runs.residency import Residents

_DURABLE_SHARE: Final = 75
"""Per cent of the places for residents that durable messages may take: a backlog leaves room for other calls."""
_AT_ENTITY: Final = frozenset({Place.MAILBOX, Place.STARTING, Place.RUNNING})


class ShardTable:
    """The durable messages of one owned shard, and who waits for others of it."""

    __slots__ = ("messages", "waiting")

    def __init__(self) -> None:
        self.messages: dict[int, DurableMessage] = {}
        """Those that are in memory, by id."""
        self.waiting: dict[int, list[Message]] = {}
        """Who waits for messages that are in the store only."""


class InMemory:
    """Moves durable messages between mailbox, schedule and store. All methods are synchronous."""

    def __init__(self, owner: Owner, *, residents: Residents, backlog: Backlog, schedule: Schedule) -> None:
        self._types = owner.types
        self._scheduler = owner.scheduler
        self._residents = residents
        self._backlog = backlog
        self._schedule = schedule
        self._tables: dict[HostedShard, ShardTable] = {}
        self.entities = 0
        """How many residents have durable messages in memory."""
        self._most_entities = max(1, owner.limits.max_resident * _DURABLE_SHARE // 100)

    def __len__(self) -> int:
        return sum(len(table.messages) for table in self._tables.values())

    def __iter__(self) -> Iterator[DurableMessage]:
        for table in self._tables.values():
            yield from table.messages.values()

    def table(self, shard: HostedShard) -> ShardTable:
        """Return the shard's table; of a shard that was lost, an empty one that nobody else sees."""
        return self._tables.get(shard) or ShardTable()

    def granted(self, shards: Iterable[HostedShard]) -> None:
        """Begin a table for each shard. What its store has comes first: what comes meanwhile queues up behind it."""
        for shard in shards:
            self._tables[shard] = ShardTable()
            self._backlog.mark(shard)
        self._schedule.poll_soon()

    def revoked(self, shard: HostedShard) -> list[Message]:
        """Forget everything of the shard; return who waits, and must ask its next owner."""
        self._backlog.forget(shard)
        table = self._tables.pop(shard, None)
        if table is None:
            return []
        for message in table.messages.values():
            self._let_go(message)
            if message.phase == QUEUED:
                message.phase = DONE
        callers = [caller for message in table.messages.values() for caller in message.waiters]
        return [*callers, *(caller for group in table.waiting.values() for caller in group)]

    def cell_killed(self, cell: Cell) -> None:
        """A resident entity was forced out: none of its messages is at it."""
        self.entities -= cell.durable_count > 0
        cell.durable_count = 0

    def add(self, message: DurableMessage) -> None:
        """Know a message that arrived."""
        self.table(message.shard).messages[message.message_id] = message

    def admit(self, message: DurableMessage, *, from_store: bool) -> bool:
        """Queue a message for its entity; `False` if it must wait in the store, behind others or for room.

        Args:
            message: In memory, and nowhere yet, or in the schedule until now.
            from_store: It was in the store before: it does not have to queue up behind what is there.
        """
        hosted_type, shard = self._types[message.spec.entity_type], message.shard
        cell = hosted_type.cells.get(message.entity_id)
        if cell is None:
            if shard.draining or (shard.has_backlog and not from_store) or not self._has_room(hosted_type):
                return False
            cell = self._residents.add(hosted_type, shard, message.entity_id)
        elif (cell.has_backlog and not from_store) or (
            cell.queue is not None and len(cell.queue) >= hosted_type.spec.mailbox_capacity
        ):
            cell.has_backlog = True
            return False
        self.entities += cell.durable_count == 0
        cell.durable_count += 1
        if not message.is_stored and cell.give_turn(message):
            # Nobody waits before it, so it starts as soon as it is stored.
            message.place = Place.STARTING
        else:
            message.place = Place.MAILBOX
            self._scheduler.enqueue(cell, message)
        return True

    def spill(self, message: DurableMessage) -> None:
        """Keep the message in the store only; its callers go on waiting here.

        What waits behind it in its mailbox goes with it, and what comes queues up behind both in the store: nothing may
        overtake it.
        """
        cell = message.cell if message.place in _AT_ENTITY else None
        if cell is not None:
            cell.has_backlog = True
            for other in list(cell.queue or ()):
                if isinstance(other, DurableMessage) and other is not message:
                    self._spill(other)
        self._spill(message)

    def spilled(self, message: DurableMessage) -> None:
        """The store has a message that was to be out of memory then: the loader brings it in again."""
        is_waited_for = any(caller.kind != TELL and caller.phase == SENT for caller in message.waiters)
        self.leave_in_store(message)
        if is_waited_for:
            self._backlog.ask_for(message.shard, message.entity)
        else:
            self._backlog.mark(message.shard)

    def schedule(self, message: DurableMessage, due: float) -> None:
        """Run the message at that time, in seconds since the Unix epoch by the store's clock."""
        self._leave_entity(message)
        message.abandoned_for = None
        message.place = Place.SCHEDULED
        if not self._schedule.add(message, due):
            self.leave_in_store(message)

    def scheduled(self, message: DurableMessage, due: float) -> None:
        """Take a message that a scan found, and that is due then."""
        message.place = Place.SCHEDULED
        self._schedule.push(message, due)

    def leave_in_store(self, message: DurableMessage) -> None:
        """Take a message that is in the store out of memory; who waits for it goes on waiting here."""
        if callers := self.forget(message):
            self.table(message.shard).waiting.setdefault(message.message_id, []).extend(callers)

    def forget(self, message: DurableMessage) -> list[Message]:
        """Take a message that does not run out of memory; return who waits for it."""
        if message.place is not Place.GONE:
            messages = self.table(message.shard).messages
            if messages.get(message.message_id) is message:
                del messages[message.message_id]
            self._leave_entity(message)
            self._let_go(message)
        return [caller for caller in message.waiters if caller.phase == SENT]

    def wait_for(self, shard: HostedShard, message_id: int, callers: Collection[Message]) -> None:
        """Let callers wait for a message of the shard, in memory or not; those who went away are dropped."""
        table = self.table(shard)
        message = table.messages.get(message_id)
        waiting = message.waiters if message is not None else table.waiting.setdefault(message_id, [])
        waiting[:] = [caller for caller in waiting if caller.phase == SENT]
        waiting.extend(callers)

    def _has_room(self, hosted_type: HostedType) -> bool:
        if hosted_type.spec.singleton_id is None and self.entities >= self._most_entities:
            return False
        return self._residents.has_room(hosted_type)

    def _spill(self, message: DurableMessage) -> None:
        """Leave the entity at once, and memory as soon as the store has the message."""
        if message.place is Place.GONE:
            return
        self._leave_entity(message)
        message.place = Place.SPILLING
        if message.is_stored:
            self.spilled(message)

    def _leave_entity(self, message: DurableMessage) -> None:
        """Give back the turn that it waits with, and its place at its entity."""
        if message.phase == QUEUED:
            self._scheduler.dequeue(message)
            message.phase = DONE
        if message.place not in _AT_ENTITY:
            return
        cell = message.cell
        assert cell is not None
        has_turn = message.place is Place.STARTING
        message.place = Place.ARRIVED
        message.is_counted = False
        if has_turn:
            message.phase = DONE
            self._scheduler.ended(message)
        cell.durable_count -= 1
        if cell.durable_count == 0:
            self.entities -= 1
            self._backlog.place_freed()
            if cell.has_backlog:
                self._backlog.drained(cell)

    def _let_go(self, message: DurableMessage) -> None:
        message.place = Place.GONE
        self._backlog.unloaded(message)
