"""How durable messages end: with a reply, a later run, or as a dead letter; and who is told."""

import copy
from asyncio import Future
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from actorhub.core.codec import decode_error, encode_error, public_name
from actorhub.core.envelope import TELL
from actorhub.core.errors import (
    ActorhubError,
    EntityError,
    HandlerFailed,
    MailboxFull,
    MalformedMessage,
    MessageCancelled,
    PersistenceError,
    RunnerUnavailable,
    ShuttingDown,
)
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of, text_of, traceback_of
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.owner import Owner
from actorhub.engine.model.durable_message import DurableMessage, Place, start_of
from actorhub.engine.model.records import DEAD, SENT, HostedShard, Message
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.runs.scheduler import RunMoved
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import (
    CancelResult,
    NotPending,
    Outcome,
    PendingMessage,
    RunCommit,
    RunFailure,
    StoredReply,
)
from actorhub.storage.ports import Fenced, VersionConflict

_log: Final = get_logger("actorhub.settlement")

_encode_id: Final = msgspec.msgpack.Encoder().encode


class Settlement:
    """Writes into the store how messages end, and tells their callers afterwards.

    The row of a message is deleted by what settles it. So of a commit, a cancellation and a repetition of the commit
    only one gets the row; for the others the message is no longer pending (`NotPending`), and they find the reply that
    counts.
    """

    def __init__(self, owner: Owner, *, memory: InMemory, backlog: Backlog) -> None:
        self._memory = memory
        self._backlog = backlog
        self._store = owner.store
        self._clock = owner.clock
        self._supervisor = owner.supervisor
        self._context = owner.scheduler.context
        self._incarnation = owner.incarnation
        self._mistrust = owner.mistrust
        self._shards = owner.shards
        self._forward = owner.forward
        self._longest = owner.limits.max_message_bytes
        self.retention = owner.limits.retention
        """Seconds for which replies are kept if the handler does not say."""
        self.settled = 0
        self.failed_runs = 0
        self.dead_letters = 0
        self.undeliverable = 0
        """Dead letters of messages that do not fit this release: their arguments, or for want of a handler."""
        self._strays: set[int] = set()
        """Messages that are being made dead letters, and are not in memory."""

    def on_run_committed(self, message: DurableMessage, body: bytes) -> None:
        """Tell the callers; the commit of the run settled the message."""
        self.settled += 1
        self._end(message, StoredReply(Outcome.VALUE, body))

    def on_run_failed(self, message: DurableMessage, error: ActorhubError) -> None:
        """Settle the message with the handler's error, have it run again later, or make it a dead letter."""
        if message.place is Place.GONE:
            return  # The shard was lost during the run; the next owner runs the message, and tells its callers.
        if message.place is Place.STARTING:
            message.place = Place.RUNNING
        # Not the message's fault: it was cut short for a hand-over, the activation ended under it, or the mailbox was
        # full of other calls. It runs again as if it had not run, without a line in its history.
        cell = message.cell
        moved = _is_moved(message, error)
        lost = moved or (message.is_running and cell is not None and cell.phase == DEAD)
        if lost or (isinstance(error, MailboxFull) and not message.is_counted):
            self._run_again(message, error, for_next_owner=moved)
        elif not message.is_stored:
            message.failure = error  # until the answer to its insert: there is no row yet
        elif isinstance(error, Fenced):
            self._mistrust(message.shard.id)  # and no more: if the shard was lost, `on_revoked` follows
        elif isinstance(error, NotPending):
            self.on_settled_elsewhere(message)
        elif message.is_cancelled:
            _ = self._supervisor.spawn(self._settle_cancelled(message), "cancel a message")
        elif isinstance(error, MalformedMessage) and not error.possibly_executed:
            # An earlier run may have come further, under a release that the arguments did fit.
            self._bury(message, error, possibly_executed=message.attempts > 1)
        elif message.spec.retry.is_final(error):
            self._settle_error(message, error)
        else:
            self.fail(message, error)

    def _run_again(self, message: DurableMessage, error: ActorhubError, *, for_next_owner: bool) -> None:
        if isinstance(error, VersionConflict):
            # Another release has the entity in another shard, and has written its state: that is not an attempt.
            _ = self._supervisor.spawn(self._uncount(message), "take back a run")
        else:
            self._memory.spill(message, for_next_owner=for_next_owner)

    async def _uncount(self, message: DurableMessage) -> None:
        try:
            await self._store.uncount_runs([start_of(message)], self._incarnation)
        except PersistenceError as error:
            _log.warning("message %d: its refused run costs an attempt: %s", message.message_id, error)
        if message.place is not Place.GONE:
            self._memory.spill(message)

    def answer(self, callers: Iterable[Message], message_id: int, reply: StoredReply) -> None:
        """Tell callers how their message ended."""
        for caller in callers:
            if caller.kind == TELL:
                self.answer_sender(caller, message_id)
            elif reply.outcome == Outcome.VALUE:
                caller.complete_waiting(reply.body)
            elif reply.outcome == Outcome.CANCELLED:
                text = f"{caller.what}({caller.entity_id}): message {message_id} was cancelled"
                caller.fail_waiting(MessageCancelled(text))
            else:
                caller.fail_waiting(decode_error(reply.body))

    def answer_sender(self, caller: Message, message_id: int = 0) -> None:
        """Tell a sender that its message is stored."""
        caller.complete_waiting(_encode_id(message_id or caller.message_id))

    def on_run_not_started(self, message: DurableMessage) -> None:
        """Leave the message in the store: the loader, here or at the next owner, will bring it in again."""
        self._memory.spill(message)

    def on_settled_elsewhere(self, message: DurableMessage) -> None:
        """The message is settled, but not by this run: read how, if somebody waits for it."""
        callers = self._memory.forget(message)
        if callers:
            _ = self._supervisor.spawn(self._answer_from_store(message.message_id, callers), "look up a reply")

    async def answer_or_scan(self, shard: HostedShard, message_id: int) -> None:
        """Answer the callers of a message that is not in memory, if it is settled by now; else have it brought in."""
        try:
            row = await self._store.find(message_id)
        except PersistenceError as error:
            _log.warning("message %d: cannot read whether it is settled: %s", message_id, error)
            row = None
        else:
            if row is None:
                waiting = self._memory.table(shard).waiting.pop(message_id, ())
                self._fail_callers(waiting, message_id, "it is not stored, or its reply is no longer kept")
                return
        if row is None or (row.reply is None and row.shard == shard.id):
            self._backlog.scan(shard)
            return
        # Taken out after the await, not before: whoever came to wait meanwhile is answered, too.
        callers = self._memory.table(shard).waiting.pop(message_id, [])
        if row.reply is not None:
            self.answer(callers, message_id, row.reply)
        elif (other := self._shards.get(row.shard)) is not None:
            # It is this runner's as well. The loader finds the message there, wherever the entity is activated.
            self._memory.wait_for(other, message_id, callers)
            for entity in {caller.entity for caller in callers}:
                self._backlog.mark_awaited(other, entity)
        else:
            for caller in callers:
                if caller.phase == SENT:
                    self._forward(caller, row.shard)

    async def _answer_from_store(self, message_id: int, callers: Collection[Message]) -> None:
        try:
            row = await self._store.find(message_id)
        except PersistenceError as error:
            row, reason = None, str(error)
        else:
            reason = "its reply is no longer kept"
        if row is not None and row.reply is not None:
            self.answer(callers, message_id, row.reply)
        else:
            self._fail_callers(callers, message_id, reason)

    def _fail_callers(self, callers: Iterable[Message], message_id: int, reason: str) -> None:
        for caller in callers:
            text = f"{caller.what}: message {message_id}: {reason}"
            caller.fail_waiting(RunnerUnavailable(text, possibly_executed=True))

    async def cancel(self, message_id: int, shard: HostedShard, spec: HandlerSpec) -> CancelResult:
        """Settle a message as cancelled in the store, which decides: it may have been settled, or the shard lost.

        Raises:
            PersistenceError: the store failed. The message may or may not be cancelled.
        """
        retention = spec.retention or self.retention
        return await self._store.cancel(
            message_id, shard.id, shard.epoch, incarnation=self._incarnation, retention=retention
        )

    async def _settle_cancelled(self, message: DurableMessage) -> None:
        """Settle a message whose run was ended because it was cancelled."""
        try:
            result = await self.cancel(message.message_id, message.shard, message.spec)
        except PersistenceError as error:
            if message.place is not Place.GONE:
                self._on_unsure(message, error)
            return
        if message.place is Place.GONE:
            return
        match result:
            case CancelResult.CANCELLED:
                self.settled += 1
                self._end(message, StoredReply(Outcome.CANCELLED, b""))
            case CancelResult.FENCED:
                self._mistrust(message.shard.id)
            case CancelResult.SETTLED | CancelResult.UNKNOWN:
                self.on_settled_elsewhere(message)

    def _settle_error(self, message: DurableMessage, error: ActorhubError) -> None:
        # The run's state was rolled back, so this commit has the reply alone.
        reply = StoredReply(Outcome.ERROR, encode_error(error, self._longest))
        run = RunCommit(
            shard=message.shard.id,
            epoch=message.shard.epoch,
            entity_type=message.spec.entity_type,
            entity_id=message.entity_id,
            message_id=message.message_id,
            reply=reply,
            retention=message.spec.retention or self.retention,
        )

        def written(outcome: "Future[bool]") -> None:
            if self._on_answer(message, outcome):
                self.settled += 1
                self._end(message, reply)

        self._store.commit_run(run, self._incarnation).add_done_callback(written, context=self._context)

    def fail(self, message: DurableMessage, error: ActorhubError) -> None:
        """Have the message run again later; after its last attempt, make it a dead letter."""
        retry = message.spec.retry
        # A message that could not even start, because its entity's activation failed, used up an attempt, too.
        attempts = message.attempts if message.is_counted else min(message.attempts + 1, retry.attempts)
        failed = error if isinstance(error, EntityError | HandlerFailed) else _as_handler_failed(error)
        pause = retry.pause(attempts, self._clock.random()) if retry.allows(attempts, error) else None
        failure = self._failure(message.shard, message.message_id, failed, attempts=attempts, pause=pause)
        self.failed_runs += 1

        def written(outcome: "Future[float]") -> None:
            if not self._on_answer(message, outcome):
                return
            if pause is None:
                self.dead_letters += 1
                _log.warning(
                    "%s(%s): message %d has failed for good, in attempt %d, and is a dead letter: %s",
                    *(message.what, message.entity_id, message.message_id, attempts, summary_of(failed)),
                )
                self._end(message, StoredReply(Outcome.DEAD, failure.error))
            else:
                # The pause is a due time: the message waits in the schedule, and others of its entity run meanwhile.
                message.attempts = attempts
                self._memory.schedule(message, outcome.result())

        self._store.fail_run(failure, self._incarnation).add_done_callback(written, context=self._context)

    def _bury(self, message: DurableMessage, error: ActorhubError, *, possibly_executed: bool) -> None:
        """Make a dead letter of a message whose arguments do not fit: no run of this release would change that."""
        error = copy.copy(error)
        error.possibly_executed = possibly_executed
        failure = self._failure(message.shard, message.message_id, error, attempts=message.attempts, frees_key=True)

        def written(outcome: "Future[float]") -> None:
            if self._on_answer(message, outcome):
                self._count_undeliverable(f"{message.what}({message.entity_id})", message.message_id, error)
                self._end(message, StoredReply(Outcome.DEAD, failure.error))

        self._store.fail_run(failure, self._incarnation).add_done_callback(written, context=self._context)

    def bury_stray(self, row: PendingMessage, shard: HostedShard, error: ActorhubError) -> None:
        """Make a dead letter of a message that is in the store only: nobody can run it, or not even read it."""
        if row.message_id in self._strays:
            return
        self._strays.add(row.message_id)
        error.possibly_executed = row.attempts > 0
        failure = self._failure(shard, row.message_id, error, attempts=row.attempts, frees_key=True)

        def written(outcome: "Future[float]") -> None:
            self._strays.discard(row.message_id)
            if (refusal := store_error(outcome)) is not None:
                # The next scan finds it again, if it is still pending and the shard still this runner's.
                _log.info("message %d is not a dead letter yet: %s", row.message_id, refusal)
                return
            what = f"{row.entity_type}.{row.handler}({row.entity_id!r})"
            self._count_undeliverable(what, row.message_id, error)
            waiting = self._memory.table(shard).waiting.pop(row.message_id, ())
            self.answer(waiting, row.message_id, StoredReply(Outcome.DEAD, failure.error))

        self._store.fail_run(failure, self._incarnation).add_done_callback(written, context=self._context)

    def _count_undeliverable(self, what: str, message_id: int, error: ActorhubError) -> None:
        self.dead_letters += 1
        self.undeliverable += 1
        text = "%s: message %d does not fit this release, and is a dead letter with its arguments: %s"
        _log.warning(text, what, message_id, summary_of(error))

    def _failure(
        self,
        shard: HostedShard,
        message_id: int,
        error: ActorhubError,
        *,
        attempts: int,
        pause: float | None = None,
        frees_key: bool = False,
    ) -> RunFailure:
        failed = error if isinstance(error, HandlerFailed) else None
        return RunFailure(
            shard=shard.id,
            epoch=shard.epoch,
            message_id=message_id,
            pause=pause,
            attempts=attempts,
            error=encode_error(error, self._longest),
            error_type=type(error).__name__ if failed is None else failed.type,
            error_text=text_of(error) if failed is None else failed.message,
            traceback="" if failed is None else failed.traceback,
            frees_key=frees_key,
        )

    def _on_answer(self, message: DurableMessage, outcome: "Future[bool] | Future[float]") -> bool:
        """Return whether the store wrote how a run of the message ended; if not, see to the message."""
        error = store_error(outcome)
        if message.place is Place.GONE:
            return False  # The shard was lost meanwhile, and the callers were sent on to its next owner.
        if error is None:
            return True
        if isinstance(error, Fenced):
            self._mistrust(message.shard.id)
        elif isinstance(error, NotPending):
            self.on_settled_elsewhere(message)
        else:
            self._on_unsure(message, error)
        return False

    def _on_unsure(self, message: DurableMessage, error: ActorhubError) -> None:
        """The store failed, and how a run of the message ended is perhaps written.

        If not, the loader finds the message, which is still pending. If it is, no later run will tell its callers, so
        the store is asked.
        """
        _log.warning("message %d: its outcome could not be stored: %s", message.message_id, error)
        self._memory.spill_unsure(message)
        if message.message_id in self._memory.table(message.shard).waiting:
            work = self.answer_or_scan(message.shard, message.message_id)
            _ = self._supervisor.spawn(work, "look up a pending message")

    def _end(self, message: DurableMessage, reply: StoredReply) -> None:
        if message.place is not Place.GONE:
            self.answer(self._memory.forget(message), message.message_id, reply)
            # Callers that waited before it came into memory with a tell; `Loading` would have taken them along.
            if (group := self._memory.table(message.shard).waiting.pop(message.message_id, None)) is not None:
                self.answer(group, message.message_id, reply)


def _as_handler_failed(error: ActorhubError) -> HandlerFailed:
    """Return the reply of a dead letter for one of our own errors, such as its handler's timeout."""
    return HandlerFailed(public_name(error), error.message or text_of(error), traceback_of(error))


def _is_moved(message: DurableMessage, error: ActorhubError) -> bool:
    """Whether the run failed because its entity moves: it was cut short, or nobody is left here whom it could ask."""
    return isinstance(error, RunMoved) or (isinstance(error, ShuttingDown) and message.shard.draining)
