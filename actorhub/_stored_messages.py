"""What a connected program can ask about durable messages by their ids."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from actorhub._call import decode_result
from actorhub.core.address import ShardId
from actorhub.core.codec import decode_answer, decode_error
from actorhub.core.envelope import ASK, CANCEL_MESSAGE, FIND_MESSAGE, POLL_STORAGE, RETRY_MESSAGE, TERMINATE, Durable
from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    EntityNotAssigned,
    HandlerFailed,
    MessageCancelled,
    RunnerUnavailable,
    UnknownEntityType,
    UnknownMessage,
)
from actorhub.engine.anycast.ask import AnycastRequest, ask, ask_any
from actorhub.engine.durable.requests import Whereabouts, whereabouts
from actorhub.engine.model.records import FOREVER, AwaitedMessage
from actorhub.engine.model.spec import EntitySpec, HandlerSpec, operation_spec
from actorhub.engine.part import Part
from actorhub.storage.message_ports import CancelResult, MessageStore, Outcome

_PATIENCE: Final = 30.0
"""Seconds that a request about a message may take."""
_OWNER_PATIENCE: Final = 5.0
"""Seconds to wait for an owner before the store is asked directly."""
_ANNOUNCED: Final = 1.0
"""Seconds within which a runner that took a shard is known here, and has answered."""
_BUSY_PAUSE: Final = 0.2
"""Seconds until a runner that refuses to end a run is asked again."""
_FIND: Final = operation_spec("durable message", "find")
_POLL: Final = operation_spec("store", "poll")


class StoredMessages:
    """Finds the owner of a message, and asks it.

    The owner is asked rather than the store, because it has messages in memory, and knows whether one is running. If
    nobody owns the shard, and this process can reach the store, the store is asked.
    """

    def __init__(self, part: Part, specs: Mapping[str, EntitySpec]) -> None:
        self._part = part
        self._node = part.node
        self._specs = specs

    async def reply(self, message_id: int, timeout: float | None) -> Any:  # noqa: ANN401 - what the handler returned
        """Return the reply's value, or raise its error, within `timeout` seconds; see `Cluster.reply`."""
        deadline = FOREVER if timeout is None else self._from_now(timeout)
        found = await self._find(message_id, deadline)
        if found is None:
            raise UnknownMessage(f"message {message_id} is unknown: it was never stored, or its retention is over")
        if found.outcome is None:
            request = self._request(found, ASK, message_id)
            request.delivery = Durable(is_stored=True)
            try:
                body = await self._ask(request, deadline)
                return decode_result(self._spec(found), body)
            except EntityNotAssigned as error:
                raise CallTimeout(f"message {message_id} is not settled yet: {error}", possibly_executed=True) from None
        body = found.reply or b""
        match Outcome(found.outcome):
            case Outcome.VALUE:
                return decode_result(self._spec(found), body)
            case Outcome.CANCELLED:
                raise MessageCancelled(f"message {message_id} was cancelled")
            case _:
                raise decode_error(body)

    async def cancel(self, message_id: int, *, terminate: bool) -> bool:
        """Return whether the message was cancelled; see `Cluster.cancel`."""
        found = await self._find(message_id, self._from_now(_PATIENCE))
        if found is None or found.outcome not in (None, Outcome.DEAD):
            return False
        if await self._cancelled_by_owner(found, message_id, terminate=terminate):
            return True
        # If the first answer was lost with its runner, the request was sent again, and found nothing left to cancel.
        found = await self._find(message_id, self._from_now(_PATIENCE))
        return found is not None and found.outcome == Outcome.CANCELLED

    async def _cancelled_by_owner(self, found: Whereabouts, message_id: int, *, terminate: bool) -> bool:
        """Have the owner of the message cancel it; return whether it did. Asking again does no harm."""
        until: float | None = None
        while True:
            request = self._cancellation(found, message_id, terminate=terminate)
            until = until or self._from_now(_PATIENCE + request.spec.cancel_grace)
            try:
                answer = await self._ask(request, min(until, self._from_now(self._patience)))
                return decode_answer(answer, bool)
            except EntityNotAssigned:
                if self._node.store is None or request.shard_id is None:
                    raise
                if not await self._cancel_without_owner(self._node.store, request, request.shard_id):
                    return False
                await self._tell_next_owner(found, message_id, terminate=terminate)
                return True
            except CallTimeout:
                # The owner is there, and waits for the end of the run.
                if self._node.clock.monotonic() >= until:
                    raise
            except HandlerFailed as error:
                # A runner of an earlier release does not end runs: ask until this one is over, or is another runner's.
                if error.type != "AlreadyProcessing" or self._node.clock.monotonic() >= until:
                    raise
                await asyncio.sleep(_BUSY_PAUSE)

    async def _cancel_without_owner(self, store: MessageStore, request: "_Request", shard: ShardId) -> bool:
        retention = request.spec.retention or self._node.limits.retention
        result = await store.cancel(request.message_id, shard, 0, incarnation=None, retention=retention)
        return result == CancelResult.CANCELLED

    async def _tell_next_owner(self, found: Whereabouts, message_id: int, *, terminate: bool) -> None:
        """Have whoever took the shard just before the message was cancelled in the store forget the message."""
        # It may have counted a run before the row was gone, and would not ask the store again before that begins. The
        # cancellation is decided, so nothing that becomes of this request changes what the caller is told.
        request = self._cancellation(found, message_id, terminate=terminate)
        with contextlib.suppress(ActorhubError):
            _ = await self._ask(request, self._from_now(_ANNOUNCED))

    def _cancellation(self, found: Whereabouts, message_id: int, *, terminate: bool) -> "_Request":
        request = self._request(found, CANCEL_MESSAGE, message_id)
        request.headers = {TERMINATE: "1"} if terminate else None
        return request

    async def retry(self, message_id: int) -> bool:
        """Return whether the message will run again; see `Cluster.retry`."""
        found = await self._find(message_id, self._from_now(_PATIENCE))
        if found is None or found.outcome not in (None, Outcome.DEAD):
            return False
        request = self._request(found, RETRY_MESSAGE, message_id)
        try:
            body = await self._ask(request, self._from_now(self._patience))
        except EntityNotAssigned:
            if self._node.store is None:
                raise
            return bool(await self._node.store.retry([message_id]))
        return decode_answer(body, bool)

    async def poll(self) -> None:
        """Have every runner that is linked, and this process, scan the store."""
        self._part.poll()
        for peer in self._node.peers.runners():
            try:
                request = AnycastRequest(_POLL, POLL_STORAGE)
                request.deadline = self._from_now(_PATIENCE)
                await ask(self._node, request, peer)
            except RunnerUnavailable:
                continue  # the next owners of its shards scan the store when they take them

    @property
    def _patience(self) -> float:
        return _PATIENCE if self._node.store is None else _OWNER_PATIENCE

    def _from_now(self, seconds: float) -> float:
        return self._node.clock.monotonic() + seconds

    async def _find(self, message_id: int, deadline: float) -> Whereabouts | None:
        """Return what is known about a message, from the store or from some runner; `None` if there is none."""
        if self._node.store is not None:
            row = await self._node.store.find(message_id)
            return None if row is None else whereabouts(row)
        try:
            body = await ask_any(self._node, _FIND, FIND_MESSAGE, message_id=message_id, deadline=deadline)
        except CallTimeout as error:
            error.possibly_executed = True  # it says nothing about the message that was asked about
            raise
        return decode_answer(body, Whereabouts | None)

    async def _ask(self, request: "_Request", deadline: float) -> bytes:
        request.deadline = deadline
        return await ask(self._node, request)

    def _request(self, found: Whereabouts, kind: int, message_id: int) -> "_Request":
        """Return a request to the owner of a message, for which this hub need not have its handler or entity type."""
        entity = self._specs.get(found.entity_type)
        known = None if entity is None else entity.handlers.get(found.handler)
        spec = known or operation_spec(found.entity_type, found.handler)
        request = _Request(spec, found.entity_id, kind, message_id)
        if found.shard is not None:
            request.body = found.shard.encode()
            request.shard_id = ShardId.parse(found.shard)
        elif entity is None:
            _ = self._spec(found)  # A runner of an older release found it, and did not say where it is.
        return request

    def _spec(self, found: Whereabouts) -> HandlerSpec:
        entity = self._specs.get(found.entity_type)
        if entity is None:
            raise UnknownEntityType(f"this hub has no entity type {found.entity_type!r}: register it first")
        return entity.handler(found.handler)


class _Request(AwaitedMessage):
    """A request about a stored message."""

    __slots__ = ()

    def __init__(self, spec: HandlerSpec, entity_id: str, kind: int, message_id: int) -> None:
        super().__init__(spec, entity_id, kind)
        self.message_id = message_id
        self.delivery = Durable(is_repeated=True)
