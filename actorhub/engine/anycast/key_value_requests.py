"""The key-value store for programs without a database: a runner carries out their operations."""

import asyncio
from typing import Final, assert_never

import msgspec

from actorhub.core.errors import ActorhubError, MalformedMessage, MessageTooLarge, RunnerUnavailable
from actorhub.core.key_value import (
    MAX_VALUE_BYTES,
    Clear,
    Count,
    Delete,
    Get,
    Operation,
    Put,
    Swap,
    check_key,
    check_prefix,
    check_value,
)
from actorhub.core.logger import get_logger
from actorhub.engine.model.records import SENT, Message
from actorhub.engine.supervision import Supervisor
from actorhub.storage.key_value_ports import KeyValues

_log: Final = get_logger("actorhub.key_values")

_MAX_BODY_BYTES: Final = 2 * MAX_VALUE_BYTES + (1 << 14)
"""A swap contains two values; the rest is for the key and the encoding."""
_ON_THE_WAY: Final = 0.1
"""Seconds for requests that were sent before their senders learned that this runner is leaving."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Operation).decode


class KeyValueRequests:
    """Carries out operations on a runner's store, each in a task of its own.

    Their number is bounded by how many calls a peer may have in flight.
    """

    def __init__(self, store: KeyValues, supervisor: Supervisor) -> None:
        self._store = store
        self._supervisor = supervisor
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._leaving = False
        self._has_served = False

    def serve(self, caller: Message) -> None:
        """Carry out the operation in the caller's body, and answer with the encoded result."""
        caller.phase = SENT
        if self._leaving:
            caller.fail_waiting(RunnerUnavailable("key-value store: this runner is leaving the cluster"))
            return
        try:
            operation = _decode_checked(caller.body)
        except ActorhubError as error:
            caller.fail_waiting(error)
            return
        self._has_served = True
        self._under_way += 1
        self._idle.clear()
        _ = self._supervisor.spawn(self._answer(caller, operation), "serve the key-value store")

    async def leave(self, limit: float) -> None:
        """Refuse further operations, and wait for those under way, for at most `limit` seconds.

        Peers were told before that this runner is leaving, and ask others. But requests that they sent before they
        learned of it are still on their way: they are refused, as not executed, which lets the peers ask somebody else.
        If this runner closed its links instead, their writes would fail as possibly executed.
        """
        self._leaving = True
        try:
            async with asyncio.timeout(limit):
                if self._has_served:
                    await asyncio.sleep(_ON_THE_WAY)
                await self._idle.wait()
        except TimeoutError:
            _log.warning(
                "%d key-value operations for other processes did not end within %.1f s", self._under_way, limit
            )

    async def _answer(self, caller: Message, operation: Operation) -> None:
        try:
            body = _encode(await self._carry_out(operation))
        except ActorhubError as error:
            caller.fail_waiting(error)
        else:
            caller.complete_waiting(body)
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._idle.set()

    async def _carry_out(self, operation: Operation) -> object:
        store = self._store
        match operation:
            case Get(key):
                return await store.get(key)
            case Put(key, data, ttl):
                await store.put(key, data, ttl)
                return None
            case Swap(key, expected, data, ttl):
                return await store.swap(key, expected, data, ttl)
            case Delete(key):
                return await store.delete(key)
            case Count(prefix, limit):
                return await store.count(prefix, limit)
            case Clear(prefix, after, limit):
                return await store.clear(prefix, after, limit)
            case _:
                assert_never(operation)


def _decode_checked(body: bytes) -> Operation:
    """Return the operation in `body`, checked as if this process had made it: the peer is not trusted to have done so.

    Raises:
        MalformedMessage: It is not an operation, or its key is not valid.
        MessageTooLarge: Its value is larger than 1 MiB.
    """
    if len(body) > _MAX_BODY_BYTES:
        raise MessageTooLarge(f"key-value store: an operation of {len(body)} bytes, the limit is {_MAX_BODY_BYTES}")
    try:
        operation: Operation = _decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise MalformedMessage(f"key-value store: {exc}") from exc
    match operation:
        case Count(prefix) | Clear(prefix):
            check_prefix(prefix)
        case Put(key, data) | Swap(key, _, bytes(data)):
            check_value(check_key(key), data)
        case _:
            check_key(operation.key)
    return operation
