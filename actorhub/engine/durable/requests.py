"""Requests about stored messages, rather than to entities: cancel, retry, find."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec

from actorhub.core.envelope import TERMINATE
from actorhub.core.errors import ActorhubError, MessageCancelled, PersistenceError
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.intake import Intake
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.durable_message import DurableMessage, Place
from actorhub.engine.model.records import NEW, RUNNING, SENT, HostedShard, Message
from actorhub.storage.message_ports import CancelResult, MessageRow, Outcome, StoredReply

_encode: Final = msgspec.msgpack.Encoder().encode


class Whereabouts(msgspec.Struct, array_like=True):
    """Where a message belongs, and how it ended. A wire format: append fields only."""

    entity_type: str
    entity_id: str
    handler: str
    body: bytes | None = None
    outcome: int | None = None
    reply: bytes | None = None
    shard: str | None = None


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
        str(row.shard),
    )


class MessageRequests:
    """Serves requests about stored messages. Those to cancel or retry one go to the owner of its shard."""

    def __init__(self, owner: Owner, *, memory: InMemory, intake: Intake, settlement: Settlement) -> None:
        self._memory = memory
        self._intake = intake
        self._settlement = settlement
        self._shards = owner.shards
        self._store = owner.store
        self._scheduler = owner.scheduler
        self._supervisor = owner.supervisor
        self._mistrust = owner.mistrust

    def cancel(self, caller: Message, shard: HostedShard) -> None:
        """Cancel the message, and end its run if one is under way; the reply is whether it ended as cancelled."""
        self._serve(caller, partial(self._cancel, caller, shard))

    def retry(self, caller: Message, shard: HostedShard) -> None:
        """Make a dead letter, or a message that waits, due at once; the reply is whether there was such a message."""
        self._serve(caller, partial(self._retry, caller, shard))

    def find(self, caller: Message) -> None:
        """Reply where the message belongs, or `nil` if it is unknown."""
        self._serve(caller, partial(self._find, caller))

    def _serve(self, caller: Message, work: Callable[[], Awaitable[object]]) -> None:
        caller.phase = SENT
        _ = self._supervisor.spawn(self._answer(caller, work), "serve a request about a message")

    async def _answer(self, caller: Message, work: Callable[[], Awaitable[object]]) -> None:
        try:
            body = _encode(await work())
        except _SentOnError:
            return
        except ActorhubError as error:
            caller.fail_waiting(error)
        else:
            caller.complete_waiting(body)

    async def _cancel(self, caller: Message, shard: HostedShard) -> bool:
        terminate = caller.headers is not None and TERMINATE in caller.headers
        await self._until_not_running(caller, shard, partial(self._end_run, terminate=terminate))
        intake, message_id = self._intake, caller.message_id
        waiting: list[Message] = []
        try:
            with self._memory.taken_out(caller, shard) as waiting:
                result = await self._settlement.cancel(message_id, shard, caller.spec)
        except PersistenceError:
            intake.put_back(message_id, shard, waiting)
            raise
        if result == CancelResult.CANCELLED:
            loaded = self._memory.table(shard).messages.get(message_id)
            if loaded is not None and loaded.place is Place.RUNNING:
                self._end_run(loaded, terminate=terminate)
            else:
                # It may have come whole from the run that told it, and its run may be counted since before the row was
                # gone: nobody would ask the store again before its handler begins.
                waiting += self._take_out(message_id, shard)
            self._settlement.answer(waiting, message_id, StoredReply(Outcome.CANCELLED, b""))
            return True
        intake.put_back(message_id, shard, waiting)
        if result == CancelResult.FENCED:
            self._leave_to_next_owner(caller, shard)
        return False

    async def _until_not_running(
        self, caller: Message, shard: HostedShard, on_running: Callable[[DurableMessage], None]
    ) -> None:
        """Wait until the message is stored, and no run of it is under way.

        Whatever ends its run settles it, has it wait for the next one, or leaves it to the next owner of the shard,
        whom the request then goes on to.
        """
        while True:
            message = self._memory.table(shard).messages.get(caller.message_id)
            if message is None or (message.is_stored and message.place is not Place.RUNNING):
                return
            on_running(message)
            await asyncio.wait((message.next_change(),))
            if self._shards.get(shard.id) is not shard:
                self._intake.send_on(caller)
                raise _SentOnError

    def _end_run(self, message: DurableMessage, *, terminate: bool) -> None:
        """End the run of a message, if one is under way; one that is being committed decides itself how it ends."""
        if message.place is Place.RUNNING:
            text = f"{message.what}({message.entity_id}): message {message.message_id} was cancelled while it ran"
            end = self._scheduler.terminate if terminate else self._scheduler.abandon
            end(message, MessageCancelled(text))

    def _leave_to_next_owner(self, caller: Message, shard: HostedShard) -> None:
        self._mistrust(shard.id)
        if caller.phase == SENT and self._shards.get(shard.id) is shard:
            # If it were sent on at once it would come back, again and again, until this process knows that it lost the
            # shard.
            caller.phase = NEW
            caller.cell = None
            shard.hold(caller)
        else:
            self._intake.send_on(caller)
        raise _SentOnError

    async def _retry(self, caller: Message, shard: HostedShard) -> bool:
        intake, message_id = self._intake, caller.message_id
        message = self._memory.table(shard).messages.get(message_id)
        if message is not None and message.place is Place.RUNNING and message.phase == RUNNING:
            # It runs, as it should; its attempts count from this run on.
            if found := bool(await self._store.retry([message_id])):
                message.attempts = 1
            intake.put_back(
                message_id, shard, [] if message.place is Place.RUNNING else self._take_out(message_id, shard)
            )
            return found
        await self._until_not_running(caller, shard, lambda _: None)
        waiting = self._take_out(message_id, shard)
        try:
            return bool(await self._store.retry([message_id]))
        finally:
            intake.put_back(message_id, shard, waiting)

    async def _find(self, caller: Message) -> Whereabouts | None:
        row = await self._store.find(caller.message_id)
        return None if row is None else whereabouts(row)

    def _take_out(self, message_id: int, shard: HostedShard) -> list[Message]:
        """Take the message, which does not run, out of memory; return the callers that wait for it."""
        table = self._memory.table(shard)
        message = table.messages.get(message_id)
        waiting = table.waiting.pop(message_id, [])
        return waiting if message is None else waiting + self._memory.forget(message)


class _SentOnError(ActorhubError):
    """Another runner will answer the request."""
