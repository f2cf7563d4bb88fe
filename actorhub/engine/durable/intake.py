"""Durable messages on the runner that owns their shards: stored once, counted before each run, settled once.

The store is the truth, and only the shard's owner works on its rows: what is in memory here is claimed by (incarnation,
epoch), and losing the shard simply forgets it. A message is in one of these places: on its way into the store, in a
mailbox, running, in the schedule, or in the store only (*set aside*), from where the backlog's loader brings it in.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import (
    ActorhubError,
    DuplicateKey,
)
from actorhub.engine.durable.attempts import Starts
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.durable.settlement import Settlement, store_error
from actorhub.engine.model.cell import HostedShard
from actorhub.engine.model.durable_message import DurableMessage, new_row
from actorhub.engine.model.message import DONE, NEW, QUEUED, RUNNING, SENT, Message
from actorhub.engine.runs.scheduler import Lease
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import (
    MessageStore,
    PendingMessage,
    Stored,
    Verdict,
)

if TYPE_CHECKING:
    from asyncio import Future

    from actorhub.engine.host import Host


class DeliveryStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process, and what is in memory now."""

    settled: int
    """Messages whose handler's outcome was committed here."""
    failed_runs: int
    dead_letters: int
    redelivered: int
    """Runs that were not a message's first."""
    in_memory: int
    scheduled: int
    """Of those, with a due time."""
    looks: int
    """Reads of the store for messages that wait there."""


class Delivery:
    """Takes durable messages to their handlers. All methods are synchronous; the store's answers come as callbacks."""

    def __init__(
        self,
        *,
        host: "Host",
        store: MessageStore,
        clock: Clock,
        lease: Lease,
        supervisor: Supervisor,
        incarnation: str,
        retention: float,
    ) -> None:
        self._host = host
        types = host.types
        self._shards: Mapping[ShardId, HostedShard] = host.shards
        self._store = store
        self._turns = host.turns
        self._supervisor = supervisor
        self._incarnation = incarnation
        self._seat = host.seat
        self.settlement = Settlement(
            delivery=self,
            store=store,
            clock=clock,
            supervisor=supervisor,
            context=host.turns.context,
            incarnation=incarnation,
            retention=retention,
        )
        self.starts = Starts(delivery=self, store=store, turns=host.turns, incarnation=incarnation)
        shards = self._shards
        self.backlog = Backlog(
            types=types, shards=shards, store=store, clock=clock, lease=lease, load=self._load, seat=self._seat_loaded
        )
        self.schedule = Schedule(shards=shards, store=store, clock=clock, load=self._load, seat=self._seat_loaded)

    def statistics(self) -> DeliveryStatistics:
        """Return counts; walks all owned shards."""
        return DeliveryStatistics(
            settled=self.settlement.settled,
            failed_runs=self.settlement.failed_runs,
            dead_letters=self.settlement.dead_letters,
            redelivered=self.starts.redelivered,
            in_memory=sum(len(shard.messages) for shard in self._shards.values()),
            scheduled=len(self.schedule),
            looks=self.backlog.looks,
        )

    def granted(self, shards: Iterable[HostedShard]) -> None:
        """Find what waits for these shards in the store; what comes meanwhile queues up behind it."""
        for shard in shards:
            self.backlog.wish(shard)
        self.schedule.look()

    def revoked(self, shard: HostedShard) -> None:
        """Forget everything of the shard; who waits asks its next owner."""
        self.backlog.forget(shard)
        messages, shard.messages = shard.messages, {}
        waiting, shard.waiting = shard.waiting, {}
        for message in messages.values():
            self._forget(message)
            if message.phase == QUEUED:
                message.phase = DONE
        callers = [caller for message in messages.values() for caller in message.waiters]
        for caller in (*callers, *(caller for group in waiting.values() for caller in group)):
            self.send_on(caller)

    def poll(self) -> None:
        """Look into the store for whatever this process was not told of."""
        self._host.singletons.look()
        for shard in self._shards.values():
            self.backlog.look(shard)
        self.schedule.look()

    def sender_lost(self) -> None:
        """A process died that may have stored messages for our entities and told us of none: they come first."""
        for shard in self._shards.values():
            self._let_stored_go_first(shard)

    def _let_stored_go_first(self, shard: HostedShard) -> None:
        """Have everything new queue up behind what this process was not told of."""
        for cell in shard.cells:
            cell.is_behind = True
        self.backlog.wish(shard)
        self.schedule.look()

    def accept(self, caller: Message, shard: HostedShard) -> None:
        """Take a call of a durable handler of an owned shard: store it, then run it."""
        durable = caller.durable or Durable()
        if shard.draining:
            shard.held.append(caller)
            return
        caller.phase = SENT
        if durable.is_deposit:
            self.settlement.answer_sender(caller)
            self._let_stored_go_first(shard)
            return
        known = shard.messages.get(caller.message_id)
        if known is not None:
            self._join(known, caller)
            return
        if durable.is_stored:
            if caller.kind == TELL:
                self.settlement.answer_sender(caller)
                self._take_stored(caller, durable, shard)
            else:
                _add(shard.waiting.setdefault(caller.message_id, []), caller)
                _ = self._supervisor.spawn(
                    self.settlement.await_settled(shard, caller.message_id), "look up a pending message"
                )
            return
        message = self._made_from(caller, shard)
        message.chain = caller.chain
        message.waiters.append(caller)
        if durable.deliver_at or durable.delay:
            self._store_message(message, 0)
        elif not self._seat(message, shard, False):
            message.is_set_aside = True
            self._store_message(message, 0)
        else:
            # What has its entity's turn starts as soon as it is stored, so its run is counted by the same statement.
            self._store_message(message, 1 if message.phase == RUNNING else 0)

    def set_aside(self, message: DurableMessage) -> None:
        """Keep the message in the store only; its callers go on waiting here.

        What waits behind it in its mailbox goes with it, and what comes queues up behind both in the store.
        """
        self._queue_up_behind(message)
        self._set_aside(message)

    def _queue_up_behind(self, message: DurableMessage) -> None:
        cell = message.cell if message.is_seated else None
        if cell is not None:
            cell.is_behind = True
            for other in list(cell.queue or ()):
                if isinstance(other, DurableMessage) and other is not message:
                    self._set_aside(other)

    def _set_aside(self, message: DurableMessage) -> None:
        if message.is_dropped:
            return
        message.is_set_aside = True
        if not message.is_storing:
            self._leave(message)

    def forget(self, message: DurableMessage) -> list[Message]:
        """Take a message that does not run out of memory; return who waits for it."""
        self._drop(message)
        return [caller for caller in message.waiters if caller.phase == SENT]

    def run_later(self, message: DurableMessage, due: float) -> None:
        """Run the message at that time, in seconds since the Unix epoch by the store's clock."""
        self._unseat(message)
        message.abandoned_for = None
        if not self.schedule.add(message, due):
            self.leave_in_store(message)

    def put_back(self, message_id: int, shard: HostedShard, callers: Collection[Message]) -> None:
        """Let the message, which is in the store at most, be found again; `callers` wait for it."""
        if self._shards.get(shard.id) is not shard:
            for caller in callers:
                self.send_on(caller)
            return
        if callers:
            shard.waiting.setdefault(message_id, []).extend(callers)
            _ = self._supervisor.spawn(self.settlement.await_settled(shard, message_id), "look up a pending message")
        self.backlog.wish(shard)
        self.schedule.look()

    def _made_from(self, caller: Message, shard: HostedShard) -> DurableMessage:
        message = DurableMessage(
            self.settlement, shard, spec=caller.spec, entity_id=caller.entity_id, message_id=caller.message_id
        )
        message.body = caller.body
        message.headers = caller.headers
        message.durable = caller.durable or Durable()
        message.key = message.durable.key
        shard.messages[message.message_id] = message
        return message

    def _load(self, row: PendingMessage, shard: HostedShard) -> DurableMessage | None:
        """Return a message made from its row; `None` if it is in memory, or its handler is unknown here."""
        if row.message_id in shard.messages:
            return None
        spec = self.backlog.handler_of(row)
        if spec is None:
            return None
        message = DurableMessage(self.settlement, shard, spec=spec, entity_id=row.entity_id, message_id=row.message_id)
        message.body = row.body
        message.headers = dict(row.headers) if row.headers else None
        message.key = row.key
        message.attempts = row.attempts
        message.is_stored = True
        message.waiters = shard.waiting.pop(row.message_id, [])
        shard.messages[row.message_id] = message
        return message

    def _seat_loaded(self, message: DurableMessage) -> bool:
        return self._seat(message, message.hosted, True)

    def _take_stored(self, caller: Message, durable: Durable, shard: HostedShard) -> None:
        """Take a message that its sender's commit stored."""
        message = self._made_from(caller, shard)
        message.is_stored = True
        now = self.schedule.server.now()
        # With a delay it is due a little earlier than this says; the store decides when it starts.
        if (due := durable.deliver_at or now + durable.delay) > now:
            self.run_later(message, due)
        else:
            self._seat_or_leave(message)

    def _seat_or_leave(self, message: DurableMessage) -> None:
        if not self._seat(message, message.hosted, False):
            self.set_aside(message)

    def _join(self, message: DurableMessage, caller: Message) -> None:
        if caller.kind == TELL and message.is_stored:
            self.settlement.answer_sender(caller)
        else:
            _add(message.waiters, caller)

    def _store_message(self, message: DurableMessage, attempts: int) -> None:
        message.is_storing = True
        message.attempts = attempts
        row = new_row(message, message.hosted.id, epoch=message.hosted.epoch, attempts=attempts)
        self._store.store(row, self._incarnation).add_done_callback(
            partial(self._stored, message), context=self._turns.context
        )

    def _stored(self, message: DurableMessage, outcome: "Future[Stored]") -> None:
        message.is_storing = False
        error = store_error(outcome)
        if message.is_dropped:
            return
        if error is not None:
            self._not_stored(message, error)
            return
        stored = outcome.result()
        if stored.now:
            self.schedule.server.heard(stored.now)
        match stored.verdict:
            case Verdict.NEW:
                self._is_new(message, stored)
            case Verdict.PENDING if stored.message_id != message.message_id:
                self._waits_for(message, stored.message_id)
            case Verdict.PENDING:
                self._is_there(message, stored)
            case Verdict.SETTLED:
                assert stored.reply is not None
                self.settlement.answer(self.forget(message), stored.message_id, stored.reply)
            case Verdict.DUPLICATE_KEY:
                self._clashes(message)
            case Verdict.FENCED:
                self._host.mistrusted(message.hosted.id)

    def _clashes(self, message: DurableMessage) -> None:
        for caller in self.forget(message):
            caller.fail_waiting(
                DuplicateKey(f"{caller.what}({caller.entity_id}): key {message.key!r} had another payload")
            )

    def _not_stored(self, message: DurableMessage, error: ActorhubError) -> None:
        """The store failed: senders learn it. In case it is there after all, the loader finds it."""
        for caller in self.forget(message):
            caller.fail_waiting(error)
        self.backlog.wish(message.hosted)

    def _is_new(self, message: DurableMessage, stored: Stored) -> None:
        message.is_stored = True
        waiters, message.waiters = message.waiters, []
        for caller in waiters:
            if caller.kind != TELL:
                message.waiters.append(caller)
            else:
                self.settlement.answer_sender(caller)
        if message.is_set_aside:
            self._leave(message)
        elif stored.deliver_at:
            self.run_later(message, stored.deliver_at)
        elif message.failure is not None:
            self.settlement.run_failed(message, message.failure)
        elif message.is_seated:
            self._is_new_in_mailbox(message)
        else:
            self._seat_or_leave(message)

    def _is_new_in_mailbox(self, message: DurableMessage) -> None:
        if message.attempts and message.is_starting:
            self.starts.counted(message)
        elif message.attempts:
            message.is_counted = True
        elif message.is_starting:
            self.starts.start(message)

    def _is_there(self, message: DurableMessage, stored: Stored) -> None:
        """It was stored before: just now, by a statement whose answer was lost, or for an earlier owner."""
        if message.durable is not None and message.durable.is_repeated:
            message.attempts = 0
            message.is_set_aside = True
            self._queue_up_behind(message)
            self.schedule.look()
        self._is_new(message, stored)

    def _waits_for(self, message: DurableMessage, message_id: int) -> None:
        """Another call with its key came first: wait for that one."""
        shard = message.hosted
        callers = self.forget(message)
        other = shard.messages.get(message_id)
        for caller in callers:
            if caller.kind == TELL:
                self.settlement.answer_sender(caller, message_id)
            elif other is not None:
                _add(other.waiters, caller)
            else:
                _add(shard.waiting.setdefault(message_id, []), caller)
        if other is None:
            # Perhaps it was settled while this answer was on its way: nobody would tell these callers.
            _ = self._supervisor.spawn(self.settlement.await_settled(shard, message_id), "look up a pending message")

    def _leave(self, message: DurableMessage) -> None:
        """Take the message out of memory, for the loader to bring in again."""
        is_waited_for = any(caller.kind != TELL and caller.phase == SENT for caller in message.waiters)
        self.leave_in_store(message)
        if is_waited_for:
            self.backlog.ask_for(message.hosted, (message.spec.entity_type, message.entity_id))
        else:
            self.backlog.wish(message.hosted)

    def leave_in_store(self, message: DurableMessage) -> None:
        """Take a message that is in the store out of memory; who waits for it goes on waiting here."""
        if callers := self.forget(message):
            message.hosted.waiting.setdefault(message.message_id, []).extend(callers)

    def _drop(self, message: DurableMessage) -> None:
        if message.is_dropped:
            return
        if message.hosted.messages.get(message.message_id) is message:
            del message.hosted.messages[message.message_id]
        if message.phase == QUEUED:
            self._turns.dequeue(message)
            message.phase = DONE
        self._unseat(message)
        self._forget(message)

    def _forget(self, message: DurableMessage) -> None:
        message.is_dropped = True
        if message.is_loaded:
            self.backlog.unloaded(message)

    def _unseat(self, message: DurableMessage) -> None:
        """Give back the turn that it waits with, and its place at its entity."""
        if message.is_starting:
            message.is_starting = False
            message.phase = DONE
            self._turns.ended(message)
        if message.is_seated:
            cell = message.cell
            assert cell is not None
            message.is_seated = message.is_counted = False
            cell.durable -= 1
            if cell.durable == 0:
                cell.shard.host.durable_entities -= 1
                self.backlog.place_freed()
                if cell.is_behind:
                    self.backlog.drained(cell)

    def send_on(self, caller: Message) -> None:
        """Have a caller that still waits ask the shard's next owner."""
        if caller.phase == SENT:
            caller.phase = NEW
            caller.cell = None
            if caller.durable is not None:
                caller.durable = msgspec.structs.replace(caller.durable, is_repeated=True)
            self._host.reroute(caller)


def _add(callers: list[Message], caller: Message) -> None:
    """Let `caller` wait, too; those who went away meanwhile are dropped."""
    callers[:] = [waiting for waiting in callers if waiting.phase == SENT]
    callers.append(caller)
