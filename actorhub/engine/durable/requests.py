"""What callers ask about stored messages rather than of entities: cancel, start over, find; and keep for later."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, AlreadyProcessing, DuplicateKey, PersistenceError
from actorhub.engine.durable.intake import Delivery
from actorhub.engine.durable.settlement import store_error
from actorhub.engine.model.cell import HostedShard
from actorhub.engine.model.durable_message import new_row
from actorhub.engine.model.message import COMMITTING, FOREVER, NEW, PARKED, RUNNING, SENT, Message
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import CancelResult, MessageRow, MessageStore, Outcome, Stored, StoredReply, Verdict

_encode: Final = msgspec.msgpack.Encoder().encode

DEPOSIT_AFTER: Final = 0.25
"""Seconds that a durable tell waits for its shard's owner before it is stored for whoever will own it."""


class Whereabouts(msgspec.Struct, array_like=True):
    """Where a message belongs. A wire format: append fields only."""

    entity_type: str
    entity_id: str
    handler: str
    body: bytes | None = None
    outcome: int | None = None
    reply: bytes | None = None


def whereabouts(row: MessageRow) -> Whereabouts:
    """Return what a caller needs to know of a message."""
    reply = row.reply
    return Whereabouts(
        row.entity_type,
        row.entity_id,
        row.handler,
        row.body,
        None if reply is None else int(reply.outcome),
        None if reply is None else reply.body,
    )


class MessageRequests:
    """Serves requests about stored messages on a runner; those of one message go to its shard's owner."""

    def __init__(self, *, delivery: Delivery, store: MessageStore, supervisor: Supervisor, incarnation: str) -> None:
        self._delivery = delivery
        self._store = store
        self._supervisor = supervisor
        self._incarnation = incarnation

    def cancel(self, caller: Message, shard: HostedShard) -> None:
        """Cancel the message unless it runs; the reply is whether it had not ended."""
        self._serve(caller, self._cancel(caller, shard))

    def retry(self, caller: Message, shard: HostedShard) -> None:
        """Make a dead letter, or a message that waits, due at once; the reply is whether there was one."""
        self._serve(caller, self._retry(caller, shard))

    def find(self, caller: Message) -> None:
        """Say where the message belongs, or `nil`."""
        self._serve(caller, self._find(caller))

    def _serve(self, caller: Message, work: Coroutine[Any, Any, object]) -> None:
        caller.phase = SENT
        _ = self._supervisor.spawn(self._answered(caller, work), "serve a request about a message")

    async def _answered(self, caller: Message, work: Coroutine[Any, Any, object]) -> None:
        try:
            body = _encode(await work)
        except _SentOnError:
            return
        except ActorhubError as error:
            caller.fail_waiting(error)
        else:
            caller.complete_waiting(body)

    async def _cancel(self, caller: Message, shard: HostedShard) -> bool:
        delivery, message_id = self._delivery, caller.message_id
        waiting = self._taken_out(message_id, shard)
        try:
            result = await self._store.cancel(
                message_id,
                shard.id,
                shard.epoch,
                incarnation=self._incarnation,
                retention=caller.spec.retention or delivery.settlement.retention,
            )
        except PersistenceError:
            delivery.put_back(message_id, shard, waiting)
            raise
        if result == CancelResult.CANCELLED:
            delivery.settlement.answer(waiting, message_id, StoredReply(Outcome.CANCELLED, b""))
            return True
        delivery.put_back(message_id, shard, waiting)
        if result == CancelResult.FENCED:
            self._leave_to_next_owner(caller, shard)
        return False

    def _leave_to_next_owner(self, caller: Message, shard: HostedShard) -> None:
        shard.host.mistrusted(shard.id)
        if caller.phase == SENT and shard.host.shards.get(shard.id) is shard:
            # Sent on at once it would come back, again and again, until the loss of the shard is known here.
            caller.phase = NEW
            caller.cell = None
            shard.held.append(caller)
        else:
            self._delivery.send_on(caller)
        raise _SentOnError

    async def _retry(self, caller: Message, shard: HostedShard) -> bool:
        delivery, message_id = self._delivery, caller.message_id
        waiting = self._taken_out(message_id, shard)
        try:
            return bool(await self._store.retry([message_id]))
        finally:
            delivery.put_back(message_id, shard, waiting)

    async def _find(self, caller: Message) -> Whereabouts | None:
        row = await self._store.find(caller.message_id)
        return None if row is None else whereabouts(row)

    def _taken_out(self, message_id: int, shard: HostedShard) -> list[Message]:
        """Take the message out of memory; return who waits for it.

        Raises:
            AlreadyProcessing: it runs, or is just being stored.
        """
        message = shard.messages.get(message_id)
        waiting = shard.waiting.pop(message_id, [])
        if message is None:
            return waiting
        if message.phase in (RUNNING, COMMITTING) or message.is_storing:
            shard.waiting[message_id] = waiting
            raise AlreadyProcessing(f"message {message_id} is being processed by {message.address}")
        return waiting + self._delivery.forget(message)


class _SentOnError(ActorhubError):
    """The request is another runner's to answer."""


class Deposits:
    """Stores durable tells that find no owner: whoever takes their shard runs them."""

    def __init__(self, store: MessageStore | None) -> None:
        self._store = store
        self._wakes: dict[ShardId, _Wake] = {}
        self.route: Callable[[Message], None]
        """Sends a message on its way."""
        self.unpark: Callable[[Message], None]
        """Takes a message out of what waits for owners."""
        self.ask_a_runner: Callable[[Message], bool]
        """Sends it to any runner, which stores it; `False`: there is none."""

    def parked(self, message: Message) -> None:
        """Store a tell that waits for an owner, unless one appears soon."""
        asyncio.get_running_loop().call_later(DEPOSIT_AFTER, self._no_owner_came, message)

    def deposit(self, message: Message) -> None:
        """Store a tell now; its sender hears when it is stored, and tells the owner, should there be one."""
        assert self._store is not None
        assert message.shard is not None
        message.phase = SENT
        self._store.deposit(new_row(message, message.shard)).add_done_callback(partial(_deposited, message))

    def _no_owner_came(self, message: Message) -> None:
        if message.phase != PARKED:
            return
        deposit = _Deposit(message, self._wake)
        if self._store is not None:
            self.deposit(deposit)
        elif not self.ask_a_runner(deposit):
            # It keeps its place in the line.
            self.parked(message)
            return
        self.unpark(message)
        message.phase = SENT

    def _wake(self, told: Message) -> None:
        """Tell the shard's owner, now or once there is one; one such message per shard waits."""
        assert told.shard is not None
        waiting = self._wakes.get(told.shard)
        if waiting is None or waiting.phase != PARKED:
            wake = self._wakes[told.shard] = _Wake(told)
            self.route(wake)


def _deposited(message: Message, outcome: "Future[Stored]") -> None:
    error = store_error(outcome)
    if error is not None:
        message.fail_waiting(error)
    elif outcome.result().verdict == Verdict.DUPLICATE_KEY:
        message.fail_waiting(DuplicateKey(f"{message.what}({message.entity_id}): its key had another payload"))
    else:
        message.complete_waiting(_encode(outcome.result().message_id))


class _Copy(Message):
    """A tell on another errand of its sender's."""

    __slots__ = ("_told",)

    def __init__(self, told: Message, **said: bool) -> None:
        super().__init__(told.spec, told.entity_id, TELL)
        self._told = told
        self.message_id = told.message_id
        self.shard = told.shard
        self.body = told.body
        self.headers = told.headers
        self.deadline = told.deadline
        self.durable = msgspec.structs.replace(told.durable or Durable(), **said)


class _Deposit(_Copy):
    """Stores a tell for whoever will own its shard."""

    __slots__ = ("_wake",)

    def __init__(self, told: Message, wake: Callable[[Message], None]) -> None:
        super().__init__(told, is_deposit=True)
        self._wake = wake

    def completed(self, body: bytes) -> None:
        """Let the sender go on, whose next messages travel behind the wake: who owns the shard learns of this first.

        Whoever took the shard just before this was stored has not seen it.
        """
        if msgspec.msgpack.decode(body, type=int) == self.message_id:
            self._wake(self._told)
        self._told.complete_waiting(body)

    def failed(self, error: ActorhubError) -> None:
        """Tell the sender."""
        self._told.fail_waiting(error)


class _Wake(_Copy):
    """Has a shard's owner, once there is one, look for what was deposited."""

    __slots__ = ()

    def __init__(self, told: Message) -> None:
        super().__init__(told, is_stored=True, is_deposit=True)
        self.deadline = FOREVER
        self.body = b""

    def completed(self, body: bytes) -> None:
        """The owner knows."""

    def failed(self, error: ActorhubError) -> None:
        """It finds the message at its next look into the store."""
