"""How calls of durable handlers come in: each is stored first, once per key, then queued for its entity.

A call is acknowledged when the store has it, and not before (invariant A). What has its entity's turn when it is stored
has its run counted by the same statement, so that an idle entity costs one round trip before its handler starts.
"""

from asyncio import Future
from collections.abc import Collection
from functools import partial

import msgspec

from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, DuplicateKey
from actorhub.engine.durable.attempts import Attempts
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.durable_message import DurableMessage, Place, new_row
from actorhub.engine.model.records import NEW, SENT, HostedShard, Message
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import Stored, Verdict


class Intake:
    """Takes durable calls of owned shards. All methods are synchronous; the store's answers come as callbacks."""

    def __init__(
        self,
        owner: Owner,
        *,
        memory: InMemory,
        backlog: Backlog,
        schedule: Schedule,
        settlement: Settlement,
        attempts: Attempts,
    ) -> None:
        self._memory = memory
        self._backlog = backlog
        self._schedule = schedule
        self._settlement = settlement
        self._attempts = attempts
        self._server = owner.server
        self._shards = owner.shards
        self._store = owner.store
        self._context = owner.scheduler.context
        self._supervisor = owner.supervisor
        self._incarnation = owner.incarnation
        self._reroute = owner.reroute
        self._mistrust = owner.mistrust

    def accept(self, caller: Message, shard: HostedShard) -> None:
        """Take a call of a durable handler of an owned shard: store it, then run it."""
        delivery = caller.delivery or Durable()
        if shard.draining:
            shard.held.append(caller)
            return
        caller.phase = SENT
        if delivery.is_deposit:
            self._settlement.answer_sender(caller)
            self.let_stored_go_first(shard)
            return
        known = self._memory.table(shard).messages.get(caller.message_id)
        if known is not None:
            self._join(known, caller)
        elif delivery.is_stored:
            self._take_stored(caller, delivery, shard)
        else:
            self._take_new(caller, delivery, shard)

    def let_stored_go_first(self, shard: HostedShard) -> None:
        """Have everything new queue up behind what this process was not told of."""
        for cell in shard.cells:
            cell.has_backlog = True
        self._backlog.mark(shard)
        self._schedule.poll_soon()

    def put_back(self, message_id: int, shard: HostedShard, callers: Collection[Message]) -> None:
        """Let the message, which is in the store at most, be found again; `callers` wait for it."""
        if self._shards.get(shard.id) is not shard:
            for caller in callers:
                self.send_on(caller)
            return
        if callers:
            self._wait_for(shard, message_id, callers)
        self._backlog.mark(shard)
        self._schedule.poll_soon()

    def send_on(self, caller: Message) -> None:
        """Have a caller that still waits ask the shard's next owner."""
        if caller.phase == SENT:
            caller.phase = NEW
            caller.cell = None
            if caller.delivery is not None:
                caller.delivery = msgspec.structs.replace(caller.delivery, is_repeated=True)
            self._reroute(caller)

    def _take_new(self, caller: Message, delivery: Durable, shard: HostedShard) -> None:
        message = self._made_from(caller, shard)
        message.chain = caller.chain
        message.waiters.append(caller)
        attempts = 0
        if delivery.deliver_at or delivery.delay:
            message.place = Place.STORING
        elif not self._memory.admit(message, from_store=False):
            message.place = Place.SPILLING
        elif message.place is Place.STARTING:
            attempts = 1
        self._store_message(message, attempts)

    def _store_message(self, message: DurableMessage, attempts: int) -> None:
        message.attempts = attempts
        row = new_row(message, message.shard.id, epoch=message.shard.epoch, attempts=attempts)
        self._store.store(row, self._incarnation).add_done_callback(
            partial(self._stored, message), context=self._context
        )

    def _take_stored(self, caller: Message, delivery: Durable, shard: HostedShard) -> None:
        """Take a message that its sender's commit stored, or a caller that waits for one."""
        if caller.kind != TELL:
            self._wait_for(shard, caller.message_id, [caller])
            return
        self._settlement.answer_sender(caller)
        message = self._made_from(caller, shard)
        message.is_stored = True
        now = self._server.now()
        # With a delay it is due a little earlier than this says; the store decides when it starts.
        if (due := delivery.deliver_at or now + delivery.delay) > now:
            self._memory.schedule(message, due)
        else:
            self._admit_or_spill(message)

    def _made_from(self, caller: Message, shard: HostedShard) -> DurableMessage:
        message = DurableMessage(
            self._settlement, shard, spec=caller.spec, entity_id=caller.entity_id, message_id=caller.message_id
        )
        message.body = caller.body
        message.headers = caller.headers
        message.delivery = caller.delivery or Durable()
        message.key = message.delivery.key
        self._memory.add(message)
        return message

    def _admit_or_spill(self, message: DurableMessage) -> None:
        if not self._memory.admit(message, from_store=False):
            self._memory.spill(message)

    def _join(self, message: DurableMessage, caller: Message) -> None:
        if caller.kind == TELL and message.is_stored:
            self._settlement.answer_sender(caller)
        else:
            self._memory.wait_for(message.shard, message.message_id, [caller])

    def _wait_for(self, shard: HostedShard, message_id: int, callers: Collection[Message]) -> None:
        """Let callers wait for a message that is in the store at most.

        Perhaps it was settled while they were on their way, and nobody would tell them: so the store is asked, too.
        """
        self._memory.wait_for(shard, message_id, callers)
        work = self._settlement.await_settled(shard, message_id)
        _ = self._supervisor.spawn(work, "look up a pending message")

    def _stored(self, message: DurableMessage, outcome: "Future[Stored]") -> None:
        error = store_error(outcome)
        if message.place is Place.GONE:
            return
        if error is not None:
            self._not_stored(message, error)
            return
        stored = outcome.result()
        if stored.now:
            self._server.observe_time(stored.now)
        match stored.verdict:
            case Verdict.NEW:
                self._is_new(message, stored)
            case Verdict.PENDING if stored.message_id != message.message_id:
                self._join_earlier(message, stored.message_id)
            case Verdict.PENDING:
                self._is_there(message, stored)
            case Verdict.SETTLED:
                assert stored.reply is not None
                self._settlement.answer(self._memory.forget(message), stored.message_id, stored.reply)
            case Verdict.DUPLICATE_KEY:
                self._clashes(message)
            case Verdict.FENCED:
                self._mistrust(message.shard.id)

    def _clashes(self, message: DurableMessage) -> None:
        for caller in self._memory.forget(message):
            text = f"{caller.what}({caller.entity_id}): key {message.key!r} had another payload"
            caller.fail_waiting(DuplicateKey(text))

    def _not_stored(self, message: DurableMessage, error: ActorhubError) -> None:
        """The store failed: senders learn it. In case it is there after all, the loader finds it."""
        for caller in self._memory.forget(message):
            caller.fail_waiting(error)
        self._backlog.mark(message.shard)

    def _is_new(self, message: DurableMessage, stored: Stored) -> None:
        waiters, message.waiters = message.waiters, []
        for caller in waiters:
            if caller.kind != TELL:
                message.waiters.append(caller)
            else:
                self._settlement.answer_sender(caller)
        message.is_stored = True
        if message.place is Place.SPILLING:
            self._memory.spilled(message)
        elif stored.deliver_at:
            self._memory.schedule(message, stored.deliver_at)
        elif message.failure is not None:
            self._settlement.run_failed(message, message.failure)
        elif message.place is Place.STORING:
            self._admit_or_spill(message)
        elif message.attempts and message.place is Place.STARTING:
            self._attempts.counted(message)
        elif message.attempts:
            message.is_counted = True
        elif message.place is Place.STARTING:
            self._attempts.start(message)

    def _is_there(self, message: DurableMessage, stored: Stored) -> None:
        """It was stored before: just now, by a statement whose answer was lost, or for an earlier owner.

        In the second case the store may have more that must run before it, so it goes through the backlog.
        """
        if message.delivery is not None and message.delivery.is_repeated:
            message.attempts = 0
            self._memory.spill(message)
            self._schedule.poll_soon()
        self._is_new(message, stored)

    def _join_earlier(self, message: DurableMessage, message_id: int) -> None:
        """Another call with its key came first: wait for that one."""
        shard = message.shard
        waiting: list[Message] = []
        for caller in self._memory.forget(message):
            if caller.kind == TELL:
                self._settlement.answer_sender(caller, message_id)
            else:
                waiting.append(caller)
        if message_id in self._memory.table(shard).messages:
            self._memory.wait_for(shard, message_id, waiting)
        else:
            self._wait_for(shard, message_id, waiting)
