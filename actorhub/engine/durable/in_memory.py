"""Which durable messages are in memory, and where each of them is.

The store is the truth, and only the owner of a shard works on the shard's rows. So what is in memory here is claimed by
the owner's (incarnation, epoch), and losing the shard means forgetting it. There is no table of claims, nothing that
times out (too early for a slow handler, too late for a dead runner), and nothing to give back.

What one sender tells one entity runs in the order in which it was sent (invariant G). Two rules see to that. While an
entity, or its shard, has a backlog, a new message waits in the store, behind it (`admit`). And a message that leaves
its mailbox for the store takes along whatever is behind it there (`spill`).
"""

from asyncio import Future
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.envelope import TELL
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.model.durable_message import DurableMessage, Place, next_start_of, start_of
from actorhub.engine.model.records import DONE, QUEUED, SENT, HostedShard, HostedType, Message
from actorhub.engine.runs.residency import Residents
from actorhub.storage.message_ports import Readiness, RunStart

_DURABLE_SHARE: Final = 75
"""Per cent of the places for residents that durable messages may take, so that a backlog leaves room for others."""
_AT_ENTITY: Final = frozenset({Place.MAILBOX, Place.STARTING, Place.RUNNING})


class ShardTable:
    """The durable messages of one owned shard that are in memory, and who waits for others of it."""

    __slots__ = ("counting", "messages", "moved", "spared", "undecided", "waiting")

    def __init__(self) -> None:
        self.messages: dict[int, DurableMessage] = {}
        """Those in memory, by id."""
        self.waiting: dict[int, list[Message]] = {}
        """The callers that wait for messages that are in the store only, by the message's id."""
        self.counting: set[Future[Readiness]] = set()
        """Answers of the store that are under way: whether a run is counted."""
        self.spared: dict[int, RunStart] = {}
        """While the shard drains: the runs, by the message's id, that cost no attempt. They are counted or may be,
        and did not start or were cut short."""
        self.moved: set[tuple[str, str]] = set()
        """Entities of which the drain cut short a run that waits: that message is the next owner's, and runs first."""
        self.undecided: list[Message] = []
        """Cancellations about which the store is being asked. Their messages stay out of memory until the answer."""


class InMemory:
    """Moves durable messages between mailbox, schedule and store. Every method is synchronous."""

    def __init__(self, owner: Owner, *, residents: Residents, backlog: Backlog, schedule: Schedule) -> None:
        self._types = owner.types
        self._forward = owner.forward
        self._scheduler = owner.scheduler
        self._residents = residents
        self._backlog = backlog
        self._schedule = schedule
        self._tables: dict[HostedShard, ShardTable] = {}
        self.entities = 0
        """How many residents have durable messages in their mailbox, starting or running."""
        self._most_entities = max(1, owner.limits.max_resident * _DURABLE_SHARE // 100)

    def __len__(self) -> int:
        return sum(len(table.messages) for table in self._tables.values())

    def __iter__(self) -> Iterator[DurableMessage]:
        for table in self._tables.values():
            yield from table.messages.values()

    def table(self, shard: HostedShard) -> ShardTable:
        """Return the shard's table; for a shard that was lost, an empty one that nobody else sees."""
        return self._tables.get(shard) or ShardTable()

    def is_held_back(self, message_id: int, shard: HostedShard) -> bool:
        """Whether a message is to stay in the store, with what is behind it: it is being stored, or cancelled."""
        table = self.table(shard)
        message = table.messages.get(message_id)
        is_spilling = message is not None and message.place is Place.SPILLING
        return is_spilling or any(request.message_id == message_id for request in table.undecided)

    def held_back(self, shard: HostedShard) -> set[tuple[str, str]]:
        """Return the entities with such messages."""
        table = self.table(shard)
        spilling = {message.entity for message in table.messages.values() if message.place is Place.SPILLING}
        return spilling | {request.entity for request in table.undecided}

    def running(self, ids: frozenset[int]) -> Iterator[DurableMessage]:
        """Yield those of the messages that run here."""
        for table in self._tables.values():
            for message_id in table.messages.keys() & ids:
                if (message := table.messages[message_id]).is_running:
                    yield message

    def on_granted(self, shards: Iterable[HostedShard]) -> None:
        """Begin a table for each shard, which has a backlog until a walk over it shows that it has none."""
        # The former owner's commits are over, so the store has everything that was acknowledged. This process knows
        # nothing about it yet: a message that ran at once would overtake what was left.
        for shard in shards:
            self._tables[shard] = ShardTable()
            self._backlog.mark(shard)
        self._schedule.poll_soon()

    def on_revoked(self, shard: HostedShard) -> list[Message]:
        """Forget everything of the shard; return the callers that wait, to be sent on to its next owner."""
        self._backlog.forget(shard)
        table = self._tables.pop(shard, None)
        if table is None:
            return []
        for message in table.messages.values():
            # Its cell may be over already, and so none of those that the host is about to kill: a run failed in it, and
            # the answer of the store is on its way.
            if message.place in _AT_ENTITY:
                self._count_out(message)
            self._drop(message)
            if message.phase == QUEUED:
                message.phase = DONE  # The host routes what is left in mailboxes of a lost shard, but not this.
        callers = [caller for message in table.messages.values() for caller in message.waiters]
        return [*callers, *(caller for group in table.waiting.values() for caller in group)]

    def add(self, message: DurableMessage) -> None:
        """Remember a message that arrived."""
        self.table(message.shard).messages[message.message_id] = message

    def admit(self, message: DurableMessage, *, from_store: bool) -> bool:
        """Queue a message for its entity; `False` if it must wait in the store, behind others or for room.

        Args:
            message: In memory, and in no place yet, or in the schedule until now.
            from_store: It was loaded from the store, in order, so it need not wait behind what is there.
        """
        hosted_type, shard = self._types[message.spec.entity_type], message.shard
        cell = hosted_type.cells.get(message.entity_id)
        brings_entity = cell is None
        if cell is None:
            if shard.draining or (shard.has_backlog and not from_store) or not self._ensure_room(hosted_type):
                return False
            cell = self._residents.add(hosted_type, shard, message.entity_id, cause=message)
        elif cell.shard is not shard:
            return False  # Another release has the entity in another shard. The loader brings the message there.
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
            if brings_entity and not message.is_stored and not cell.is_singleton:
                # The activation waits for its insert, which counts the run.
                message.place = Place.STARTING
        return True

    def spill(self, message: DurableMessage, *, for_next_owner: bool = False) -> None:
        """Keep the message in the store only; its callers go on waiting here.

        What is behind it in the mailbox goes with it, and new messages wait behind both in the store.

        Args:
            message: At its entity, or nowhere.
            for_next_owner: It is not brought in here again while its shard drains, whoever waits for it: its run was
                cut short where it waits for something, and so would the next one be, as often as it was brought in.
        """
        if for_next_owner:
            table = self.table(message.shard)
            table.moved.add(message.entity)
            if message.is_counted:
                table.spared[message.message_id] = start_of(message)
        self._spill_others(message)
        self._spill(message)

    def spill_unsure(self, message: DurableMessage) -> None:
        """Likewise; and the store may have it with a due time, so that only a scan of the schedule finds it."""
        self.spill(message)
        self._schedule.poll_soon()

    def spilled(self, message: DurableMessage) -> None:
        """The store has a message that was to be out of memory then: the loader brings it in again."""
        # A caller must not wait behind a walk over a shard with a million other messages.
        is_waited_for = any(caller.kind != TELL and caller.phase == SENT for caller in message.waiters)
        if message.due:
            self._schedule.poll_soon()  # The store has it as a message that is due, which no walk finds.
        self.leave_in_store(message)
        if is_waited_for:
            self._backlog.mark_awaited(message.shard, message.entity)
        else:
            self._backlog.mark(message.shard)

    def schedule(self, message: DurableMessage, due: float) -> None:
        """Have the message run at `due`, in seconds since the Unix epoch by the store's clock."""
        # Out of the mailbox first: it does not hold up its entity while it waits for its time.
        self._leave_entity(message)
        message.abandoned_for = None  # That was for the run that failed, such as its timeout.
        message.place = Place.SCHEDULED
        if not self._schedule.add(message, due):
            self.leave_in_store(message)

    def schedule_found(self, message: DurableMessage, due: float) -> None:
        """Put a message that a scan found into the schedule; it is due at `due`."""
        message.place = Place.SCHEDULED
        self._schedule.push(message, due)

    def leave_in_store(self, message: DurableMessage) -> None:
        """Take a stored message out of memory; whoever waits for it goes on waiting here."""
        if callers := self.forget(message):
            self.table(message.shard).waiting.setdefault(message.message_id, []).extend(callers)

    def forget(self, message: DurableMessage) -> list[Message]:
        """Take a message out of memory, unless it left before; return the callers that still wait for it."""
        if message.place is not Place.GONE:
            messages = self.table(message.shard).messages
            if messages.get(message.message_id) is message:
                del messages[message.message_id]
            self._leave_entity(message)
            self._drop(message)
        return [caller for caller in message.waiters if caller.phase == SENT]

    @contextmanager
    def taken_out(self, request: Message, shard: HostedShard) -> Generator[list[Message], None, None]:
        """Keep a message out of memory while the store is asked to cancel it; the body gets the callers that wait.

        It must not start meanwhile, in case it is cancelled, and nothing may overtake it, in case it is not: what is
        behind it waits in the store until the answer.

        Args:
            request: To cancel the message, which does not run.
            shard: The message's.
        """
        table = self.table(shard)
        table.undecided.append(request)
        callers = table.waiting.pop(request.message_id, [])
        if (message := table.messages.get(request.message_id)) is not None:
            self._spill_others(message)
            callers += self.forget(message)
        try:
            yield callers
        finally:
            table.undecided.remove(request)
            self._backlog.on_place_freed()

    def wait_for(self, shard: HostedShard, message_id: int, callers: Collection[Message]) -> None:
        """Let callers wait for a message of the shard, in memory or not; those that went away are dropped."""
        # Who waits is with the message while that is in memory, and follows it into the shard's table and back.
        table = self.table(shard)
        message = table.messages.get(message_id)
        waiting = message.waiters if message is not None else table.waiting.setdefault(message_id, [])
        waiting[:] = [caller for caller in waiting if caller.phase == SENT]
        waiting.extend(callers)

    def let_go_of(self, shard: HostedShard, entity: tuple[str, str], home: ShardId) -> list[RunStart]:
        """Leave an entity's durable messages to the store, and have who waits for them here wait at its home.

        Returns:
            The runs that are counted and will not end here.
        """
        counted = self.set_aside(shard, entity)
        waiting = self.table(shard).waiting
        for message_id in [message_id for message_id, group in waiting.items() if group and group[0].entity == entity]:
            for caller in waiting.pop(message_id):
                if caller.phase == SENT:
                    self._forward(caller, home)
        return counted

    def set_aside(self, shard: HostedShard, entity: tuple[str, str]) -> list[RunStart]:
        """Leave an entity's durable messages to the store; return the runs that are counted and will not end here."""
        mine = [message for message in self.table(shard).messages.values() if message.entity == entity]
        counted = [start_of(message) for message in mine if message.is_counted]
        for message in mine:
            self.spill(message)
        return counted

    def _ensure_room(self, hosted_type: HostedType) -> bool:
        if hosted_type.spec.singleton_id is None and self.entities >= self._most_entities:
            return False
        return self._residents.ensure_room(hosted_type)

    def _spill_others(self, message: DurableMessage) -> None:
        """Have what is in the mailbox with a message leave before it does, and new messages wait in the store."""
        cell = message.cell if message.place in _AT_ENTITY else None
        if cell is None:
            return
        cell.has_backlog = True
        # If the message has the turn, leaving gives that back, and the scheduler starts the head of the queue right
        # there: it would overtake.
        for other in list(cell.queue or ()):
            if isinstance(other, DurableMessage) and other is not message:
                self._spill(other)

    def _spill(self, message: DurableMessage) -> None:
        """Leave the entity at once, and memory as soon as the store has the message."""
        if message.place is Place.GONE:
            return
        self._leave_entity(message)
        message.place = Place.SPILLING
        # If its insert is under way it stays known until the answer. A scan in the meantime may not find the row yet,
        # and must not conclude that the entity has no backlog; the loader asks for what is SPILLING.
        if message.is_stored:
            self.spilled(message)

    def _leave_entity(self, message: DurableMessage) -> None:
        """Give up its place at its entity, with the turn if it waits for the store with one."""
        has_turn = message.place is Place.STARTING and message.phase != QUEUED
        if message.phase == QUEUED:
            self._scheduler.dequeue(message)
            message.phase = DONE
        message.on_changed()
        if message.place not in _AT_ENTITY:
            return
        cell = message.cell
        assert cell is not None
        # In the mailbox it may have a turn, too, and a carrier that has not got to it: `Attempts.begin` ends that turn.
        # After a run `Completion` ends it.
        if message.shard.draining and message.is_stored and message.place is not Place.RUNNING:
            # Not counted, as far as is known here; but the answer may be under way, or be that of a commit.
            start = start_of(message) if message.is_counted else next_start_of(message)
            self.table(message.shard).spared[message.message_id] = start
        message.place = Place.ARRIVED
        message.is_counted = False
        if has_turn:
            message.phase = DONE
            self._scheduler.end_turn(message)
        if self._count_out(message) and cell.has_backlog:
            self._backlog.on_entity_drained(cell)

    def _count_out(self, message: DurableMessage) -> bool:
        """Count the message as no longer at its entity; return whether it was the last one there."""
        cell = message.cell
        assert cell is not None
        cell.durable_count -= 1
        if cell.durable_count:
            return False
        self.entities -= 1
        self._backlog.on_place_freed()
        return True

    def _drop(self, message: DurableMessage) -> None:
        message.place = Place.GONE
        message.on_changed()
        self._backlog.on_unloaded(message)
