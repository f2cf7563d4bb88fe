"""How calls of durable handlers come in: each is stored once, and once per key, and runs when it is stored.

A call is acknowledged when the store has it, and not before (invariant A). It is queued for its entity while its insert
is under way: the mailbox keeps the order in which calls came, whatever the order of the store's answers. A message that
gets its entity's turn at once, or brings its entity into memory, has its first run counted by the insert itself: an
idle entity costs one round trip before its handler starts, and one after.
"""

from asyncio import Future
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec

from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, DuplicateKey, PersistenceError
from actorhub.core.idempotency import users_key
from actorhub.core.snowflake import Snowflake
from actorhub.engine.durable.attempts import Attempts
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.durable_message import DurableMessage, Place, new_row, start_of
from actorhub.engine.model.records import NEW, SENT, HostedShard, Message
from actorhub.engine.runs.store_answers import store_error
from actorhub.engine.runs.stored_payloads import as_earlier
from actorhub.storage.message_ports import CancelResult, MessageKey, NewMessage, Outcome, Stored, StoredReply, Verdict

T = TypeVar("T")


class Intake:
    """Takes durable calls for owned shards. Every method is synchronous; the store answers by callbacks."""

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
        self._draining = owner.scheduler.draining
        self._open_draining = owner.open_draining
        self._reroute = owner.reroute
        self._mistrust = owner.mistrust

    def accept(self, caller: Message, shard: HostedShard) -> None:
        """Take a call of a durable handler for an owned shard: store it, then run it."""
        cell = self._backlog.cell_of(caller.entity)
        is_wake = caller.delivery is not None and caller.delivery.is_wake
        if cell is not None and not is_wake and self._shards.get(cell.shard.id) is cell.shard:
            shard = cell.shard  # Another release has the entity in another shard, and it is at home there.
        if shard.draining:
            if not self._draining.admits(caller, shard):
                shard.hold(caller)  # The shard is about to be released: the next owner stores it.
                return
            self._open_draining(shard, caller.entity)
        self.take(caller, shard)

    def take(self, caller: Message, shard: HostedShard) -> None:
        """Take a call that need not be held, whatever becomes of the shard."""
        delivery = caller.delivery or Durable()
        if (delivery.is_deposit or delivery.is_stored) and not shard.lease.is_fresh():
            # The sender would take it that the owner knows what is in the store. Another one may have read it already,
            # when this was not there yet.
            self._reroute(caller)
            return
        caller.phase = SENT
        if delivery.is_deposit:
            # A wake (`durable.deposits`): what it is about is in the store, and so may others be that came before it.
            self._settlement.answer_sender(caller)
            self.let_stored_go_first(shard)
            return
        known = self._memory.table(shard).messages.get(caller.message_id)
        if known is not None:
            # Sent again, because a link broke before the answer; or a request to wait for its reply.
            self._join(known, caller)
        elif delivery.is_stored:
            self._take_stored(caller, delivery, shard)
        else:
            self._take_new(caller, delivery, shard)

    def let_stored_go_first(self, shard: HostedShard) -> None:
        """Have everything new wait behind what is in the store, of which this process may not have been told."""
        for cell in shard.cells:
            cell.has_backlog = True
        self._backlog.mark(shard)
        self._schedule.poll_soon()

    def put_back(self, message_id: int, shard: HostedShard, callers: Collection[Message]) -> None:
        """Have the message found again, if it is in the store; `callers` wait for it."""
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
            # It may be stored, or even settled: the store must look for it among both.
            if caller.delivery is not None:
                caller.delivery = msgspec.structs.replace(caller.delivery, is_repeated=True)
            self._reroute(caller)

    def _take_new(self, caller: Message, delivery: Durable, shard: HostedShard) -> None:
        message = self._make_message(caller, shard)
        message.chain = caller.chain
        message.waiters.append(caller)
        # `admit` may hand it to a carrier; in `Attempts.begin` it then waits for the insert, keeping its turn.
        attempts = 0
        if delivery.deliver_at or delivery.delay:
            # The store says when it is due: a delay counts by the store's clock, and a time in the past means at once.
            message.place = Place.STORING
        elif not self._memory.admit(message, from_store=False):
            # It is stored nevertheless; then the loader brings it in, in its order.
            message.place = Place.SPILLING
        elif message.place is Place.STARTING:
            # It has the turn, or its entity is activated for it. If it loses its entity before the answer, the count is
            # one too high, which costs an attempt unless the shard drains.
            attempts = 1
        self._store_message(message, attempts)

    def _store_message(self, message: DurableMessage, attempts: int) -> None:
        message.attempts = attempts
        row = new_row(message, message.shard.id, epoch=message.shard.epoch, attempts=attempts)
        self._store_row(message, row)

    def _store_row(self, message: DurableMessage, row: NewMessage, *, is_compared: bool = False) -> None:
        answered = partial(self._on_stored, message, is_compared=is_compared)
        self._store.store(row, self._incarnation).add_done_callback(answered, context=self._context)

    def _take_stored(self, caller: Message, delivery: Durable, shard: HostedShard) -> None:
        """Take a message that the commit of its sender's run stored, or a caller that waits for a message."""
        if caller.kind != TELL:
            self._wait_for(shard, caller.message_id, [caller])
            return
        self._settlement.answer_sender(caller)
        # The message came whole, which saves a read. The loader may have been faster, and the message settled by now:
        # then the store refuses to count its run.
        message = self._make_message(caller, shard)
        message.is_stored = True
        now = self._server.now()
        # With a delay it was due a little earlier than this says: the delay counts from when it was stored.
        if (due := delivery.deliver_at or now + delivery.delay) > now:
            self._memory.schedule(message, due)
        else:
            self._admit_or_spill(message)

    def _make_message(self, caller: Message, shard: HostedShard) -> DurableMessage:
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
        """Let callers wait for a message that is not in memory.

        It may have been settled while they were on their way here; nobody would tell them. So the store is asked, after
        they have been entered as waiting: whoever settles it from then on tells them.
        """
        self._memory.wait_for(shard, message_id, callers)
        work = self._settlement.answer_or_scan(shard, message_id)
        _ = self._supervisor.spawn(work, "look up a pending message")

    def _on_stored(self, message: DurableMessage, outcome: "Future[Stored]", *, is_compared: bool) -> None:
        error = store_error(outcome)
        if message.place is Place.GONE:
            return  # The shard was lost, and the callers were sent on to its next owner.
        if error is not None:
            self._on_not_stored(message, error)
            return
        stored = outcome.result()
        if stored.now:
            self._server.observe_time(stored.now)
        match stored.verdict:
            case Verdict.NEW:
                self._on_first(message, stored)
            case Verdict.PENDING if stored.message_id != message.message_id:
                self._join_earlier(message, stored.message_id)
            case Verdict.PENDING:
                self._on_known(message, stored)
            case Verdict.SETTLED:
                self._on_settled(message, stored)
            case Verdict.DUPLICATE_KEY:
                self._on_key_clash(message, stored.message_id, is_compared=is_compared)
            case Verdict.FENCED:
                # Nothing else: once it is known that the shard was lost, `on_revoked` sends the callers on.
                self._mistrust(message.shard.id)

    def _on_settled(self, message: DurableMessage, stored: Stored) -> None:
        assert stored.reply is not None
        # A run that is repeated gets the same end of what it asked for: its keys stay taken.
        if users_key(message.key) is not None and stored.reply.outcome is Outcome.CANCELLED:
            self._free_key(message, stored)
        else:
            self._settlement.answer(self._memory.forget(message), stored.message_id, stored.reply)

    def _free_key(self, message: DurableMessage, stored: Stored) -> None:
        """Free the key of a message that was cancelled; if it was not this one, this one is stored now.

        A cancellation frees the key itself. It is taken again by a request that is repeated after it, and stays taken
        where a runner of an earlier release cancelled the message.
        """

        def on_freed(_: object) -> None:
            if stored.message_id == message.message_id:
                assert stored.reply is not None
                self._settlement.answer(self._memory.forget(message), message.message_id, stored.reply)
            else:
                self._store_message(message, message.attempts)

        self._ask(message, self._settlement.cancel(stored.message_id, message.shard, message.spec), on_freed)

    def _on_first(self, message: DurableMessage, stored: Stored) -> None:
        if _may_have_joined(message):
            self._store_unless_cancelled(message, stored)
        else:
            self._on_new(message, stored)

    def _store_unless_cancelled(self, message: DurableMessage, stored: Stored) -> None:
        """Go on with an ask that was sent again, unless what it waited for under the same key was cancelled meanwhile.

        The key is free then. Its caller waited for the message that was cancelled, and must not order it once more.
        """
        assert message.key is not None
        key = MessageKey(*message.entity, message.spec.name, message.key)
        made_at = Snowflake(message.message_id).parts().timestamp.timestamp()

        async def take_back() -> tuple[int, CancelResult | None]:
            cancelled = await self._store.cancelled_since(key, made_at)
            if not cancelled:
                return 0, None
            return cancelled, await self._settlement.cancel(message.message_id, message.shard, message.spec)

        def on_answer(answer: tuple[int, CancelResult | None]) -> None:
            cancelled, result = answer
            if result is CancelResult.FENCED:
                self._mistrust(message.shard.id)
            elif not cancelled:
                self._on_new(message, stored)
            else:
                self._settlement.answer(self._memory.forget(message), cancelled, StoredReply(Outcome.CANCELLED, b""))

        self._ask(message, take_back(), on_answer)

    def _on_key_clash(self, message: DurableMessage, earlier: int, *, is_compared: bool) -> None:
        if is_compared:
            self._refuse(message, earlier)
        else:
            self._compare(message, earlier)

    def _compare(self, message: DurableMessage, earlier: int) -> None:
        """Store a message as the earlier one that has its key, if both mean the same (see `runs.stored_payloads`)."""

        def on_compared(same: NewMessage | None) -> None:
            if same is None:
                self._refuse(message, earlier)
            else:
                self._store_row(message, same, is_compared=True)

        row = new_row(message, message.shard.id, epoch=message.shard.epoch, attempts=message.attempts)
        self._ask(message, as_earlier(self._store, row, message.spec), on_compared)

    def _ask(self, message: DurableMessage, question: Coroutine[Any, Any, T], go_on: Callable[[T], None]) -> None:
        """Ask the store about a message, and go on with the answer, unless the message has left meanwhile."""

        async def ask(question: Coroutine[Any, Any, T]) -> None:
            try:
                answer = await question
            except PersistenceError as error:
                if message.place is not Place.GONE:
                    self._on_not_stored(message, error)
                return
            if message.place is not Place.GONE:
                go_on(answer)

        _ = self._supervisor.spawn_within(ask, question, "ask about a key")

    def _refuse(self, message: DurableMessage, earlier: int) -> None:
        for caller in self._memory.forget(message):
            target = f"{caller.what}({caller.entity_id})"
            text = f"{target}: message {earlier} has used the key {message.key!r} before, with another payload"
            caller.fail_waiting(DuplicateKey(text))

    def _on_not_stored(self, message: DurableMessage, error: ActorhubError) -> None:
        """The store failed. Callers learn that; in case the message is stored after all, the loader finds it."""
        for caller in self._memory.forget(message):
            caller.fail_waiting(caller.own_error(error))
        self._backlog.mark(message.shard)

    def _on_new(self, message: DurableMessage, stored: Stored) -> None:
        waiters, message.waiters = message.waiters, []
        for caller in waiters:
            if caller.kind != TELL:
                message.waiters.append(caller)
            else:
                self._settlement.answer_sender(caller)
        message.is_stored = True
        message.on_changed()
        if message.place is Place.SPILLING:
            if message.attempts and message.shard.draining:
                # Its insert counted a run, and it lost its entity before the answer.
                self._memory.table(message.shard).spared[message.message_id] = start_of(message)
            self._memory.spilled(message)
        elif stored.deliver_at:
            self._memory.schedule(message, stored.deliver_at)
        elif message.failure is not None:
            # It failed in the mailbox, for example with its entity's activation, when there was no row to note that in.
            # If the insert counted a run, that is the one.
            message.attempts = 0
            self._settlement.on_run_failed(message, message.failure)
        elif message.place is Place.STORING:
            self._admit_or_spill(message)
        elif message.place is Place.STARTING:
            if message.attempts:
                self._attempts.on_counted(message)
            else:
                # Its turn came while the insert was under way, which does not count a run.
                self._attempts.start(message)

    def _on_known(self, message: DurableMessage, stored: Stored) -> None:
        """It was stored before: just now, by a statement whose answer was lost, or for an earlier owner.

        In the second case the store may have more that must run before it, so it comes back through the backlog.
        """
        if message.delivery is not None and message.delivery.is_repeated:
            message.attempts = 0  # This insert counted nothing; the row has its own count.
            self._memory.spill(message)
            self._schedule.poll_soon()
        self._on_new(message, stored)
        if message.message_id in self._memory.table(message.shard).waiting:
            # Another release may have it in another shard, where no scan of this one finds it.
            work = self._settlement.answer_or_scan(message.shard, message.message_id)
            _ = self._supervisor.spawn(work, "look up a pending message")

    def _join_earlier(self, message: DurableMessage, message_id: int) -> None:
        """An earlier call has its key: its callers wait for that one."""
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


def _may_have_joined(message: DurableMessage) -> bool:
    """Whether an ask that was stored just now, and was sent before, may have waited for another one with its key."""
    is_repeated = message.delivery is not None and message.delivery.is_repeated
    return is_repeated and users_key(message.key) is not None and any(one.kind != TELL for one in message.waiters)
