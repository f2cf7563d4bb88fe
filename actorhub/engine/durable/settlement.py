"""How durable messages end: a reply, another run later, or a dead letter; and who is told."""

import logging
import traceback
from collections.abc import Collection, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorhub.core.clock import Clock
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
)
from actorhub.engine.model.cell import DEAD, HostedShard
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.message import Message
from actorhub.engine.runs.scheduler import RunMoved
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore, NotPending, Outcome, RunCommit, RunFailure, StoredReply
from actorhub.storage.ports import Fenced

if TYPE_CHECKING:
    from asyncio import Future

    from actorhub.engine.durable.intake import Delivery

_log: Final = logging.getLogger("actorhub.settlement")

_encode_id: Final = msgspec.msgpack.Encoder().encode


class Settlement:
    """Writes the ends of messages into the store, and tells their callers afterwards."""

    def __init__(
        self,
        *,
        delivery: "Delivery",
        store: MessageStore,
        clock: Clock,
        supervisor: Supervisor,
        context: Context,
        incarnation: str,
        retention: float,
    ) -> None:
        self._delivery = delivery
        self._store = store
        self._clock = clock
        self._supervisor = supervisor
        self._context = context
        self._incarnation = incarnation
        self.retention = retention
        """Seconds that replies are kept where the handler says nothing else."""
        self.settled = 0
        self.failed_runs = 0
        self.dead_letters = 0

    def run_committed(self, message: DurableMessage, body: bytes) -> None:
        """Tell the callers; the store has it."""
        self.settled += 1
        self._end(message, StoredReply(Outcome.VALUE, body))

    def run_failed(self, message: DurableMessage, error: ActorhubError) -> None:
        """Settle the message with the handler's error, have it run again later, or give up on it."""
        message.is_starting = False
        cell = message.cell
        if message.is_dropped:
            return
        lost = isinstance(error, RunMoved) or (message.is_counted and cell is not None and cell.phase == DEAD)
        if lost or (isinstance(error, MailboxFull) and not message.is_counted):
            self._delivery.set_aside(message)
        elif message.is_storing:
            message.failure = error
        elif isinstance(error, Fenced):
            message.hosted.host.mistrusted(message.hosted.id)
        elif isinstance(error, NotPending):
            self.gone(message)
        elif _is_reply(message, error):
            self._settle_error(message, error)
        else:
            self.fail(message, error)

    def answer(self, callers: Iterable[Message], message_id: int, reply: StoredReply) -> None:
        """Tell callers how the message ended."""
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

    def gone(self, message: DurableMessage) -> None:
        """The message was settled elsewhere: look up how, if somebody waits for it."""
        callers = self._delivery.forget(message)
        if callers:
            _ = self._supervisor.spawn(self._look_up(message.message_id, callers), "look up a reply")

    async def await_settled(self, shard: HostedShard, message_id: int) -> None:
        """Answer who waits for a message that is not in memory if it is settled by now; else have it brought in."""
        try:
            row = await self._store.find(message_id)
        except PersistenceError as error:
            _log.warning("message %d: cannot look up whether it is settled: %s", message_id, error)
            row = None
        else:
            if row is None:
                self._fail_callers(shard.waiting.pop(message_id, ()), message_id, "it is not stored (any more)")
                return
        if row is not None and row.reply is not None:
            self.answer(shard.waiting.pop(message_id, ()), message_id, row.reply)
        else:
            self._delivery.backlog.look(shard)

    async def _look_up(self, message_id: int, callers: Collection[Message]) -> None:
        try:
            row = await self._store.find(message_id)
        except PersistenceError as error:
            row, reason = None, str(error)
        else:
            reason = "its reply is not kept any more"
        if row is not None and row.reply is not None:
            self.answer(callers, message_id, row.reply)
        else:
            self._fail_callers(callers, message_id, reason)

    def _fail_callers(self, callers: Iterable[Message], message_id: int, reason: str) -> None:
        for caller in callers:
            text = f"{caller.what}: message {message_id}: {reason}"
            caller.fail_waiting(RunnerUnavailable(text, possibly_executed=True))

    def _settle_error(self, message: DurableMessage, error: ActorhubError) -> None:
        reply = StoredReply(Outcome.ERROR, encode_error(error))
        run = RunCommit(
            shard=message.hosted.id,
            epoch=message.hosted.epoch,
            entity_type=message.spec.entity_type,
            entity_id=message.entity_id,
            message_id=message.message_id,
            reply=reply,
            retention=message.spec.retention or self.retention,
        )

        def written(outcome: "Future[bool]") -> None:
            if self._is_written(message, outcome):
                self.settled += 1
                self._end(message, reply)

        self._store.commit_run(run, self._incarnation).add_done_callback(written, context=self._context)

    def fail(self, message: DurableMessage, error: ActorhubError) -> None:
        """Have the message run again later, or, after its last attempt, make it a dead letter."""
        retry = message.spec.retry
        attempts = message.attempts if message.is_counted else min(message.attempts + 1, retry.attempts)
        failed = error if isinstance(error, EntityError | HandlerFailed) else _as_handler_failed(error)
        body = encode_error(failed)
        failure = RunFailure(
            shard=message.hosted.id,
            epoch=message.hosted.epoch,
            message_id=message.message_id,
            pause=None if attempts >= retry.attempts else retry.pause(attempts, self._clock.random()),
            attempts=attempts,
            error=body,
            error_type=failed.type if isinstance(failed, HandlerFailed) else type(failed).__name__,
            error_text=failed.message if isinstance(failed, HandlerFailed) else str(failed),
            traceback=failed.traceback if isinstance(failed, HandlerFailed) else "",
        )
        self.failed_runs += 1

        def written(outcome: "Future[float]") -> None:
            if not self._is_written(message, outcome):
                return
            if failure.pause is None:
                self.dead_letters += 1
                self._end(message, StoredReply(Outcome.DEAD, body))
            else:
                message.attempts = attempts
                self._delivery.run_later(message, outcome.result())

        self._store.fail_run(failure, self._incarnation).add_done_callback(written, context=self._context)

    def _is_written(self, message: DurableMessage, outcome: "Future[bool] | Future[float]") -> bool:
        """Whether a message's end, or its failure, is in the store; deal with it where it is not."""
        error = store_error(outcome)
        if message.is_dropped:
            return False
        if error is None:
            return True
        if isinstance(error, Fenced):
            message.hosted.host.mistrusted(message.hosted.id)
        elif isinstance(error, NotPending):
            self.gone(message)
        else:
            _log.warning("message %d: its outcome could not be stored: %s", message.message_id, error)
            self._delivery.set_aside(message)
        return False

    def _end(self, message: DurableMessage, reply: StoredReply) -> None:
        if not message.is_dropped:
            self.answer(self._delivery.forget(message), message.message_id, reply)
            if (group := message.hosted.waiting.pop(message.message_id, None)) is not None:
                self.answer(group, message.message_id, reply)


def store_error(outcome: "Future[Any]") -> ActorhubError | None:
    """Return what a request to the store failed with; that it was looked at is noted."""
    error = PersistenceError("the store was closed") if outcome.cancelled() else outcome.exception()
    if error is None or isinstance(error, ActorhubError):
        return error
    return PersistenceError(f"the store failed: {error!r}", possibly_executed=True)


def _as_handler_failed(error: ActorhubError) -> HandlerFailed:
    """Return what callers of a dead letter get for one of our own errors, such as a timeout of its handler."""
    return HandlerFailed(public_name(error), error.message or str(error), "".join(traceback.format_exception(error)))


def _is_reply(message: DurableMessage, error: ActorhubError) -> bool:
    """Whether the error is the message's reply, which another run would not change."""
    if isinstance(error, EntityError):
        return not isinstance(error, message.spec.retry.on)
    return isinstance(error, MalformedMessage) and not error.possibly_executed
