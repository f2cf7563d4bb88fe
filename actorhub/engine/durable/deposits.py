"""Durable tells that find no owner for their shard: they are stored for whoever will own it."""

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, DuplicateKey
from actorhub.engine.model.durable_message import new_row
from actorhub.engine.model.records import FOREVER, PARKED, SENT, Message
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import MessageStore, Stored, Verdict

_encode: Final = msgspec.msgpack.Encoder().encode

DEPOSIT_AFTER: Final = 0.25
"""Seconds that a durable tell waits for its shard's owner before it is stored for whoever will own it."""


class Ways(Protocol):
    """The ways that a message can take: the router."""

    def route(self, message: Message) -> None:
        """Send a message on its way."""
        ...

    def unpark(self, message: Message) -> None:
        """Take a message out of what waits for owners."""
        ...

    def ask_a_runner(self, message: Message) -> bool:
        """Send it to any runner, which stores it; `False`: there is none."""
        ...


class Deposits:
    """Stores durable tells that find no owner: whoever takes their shard runs them."""

    def __init__(self, store: MessageStore | None, ways: Ways) -> None:
        self._store = store
        self._ways = ways
        self._wakes: dict[ShardId, _Wake] = {}

    def parked(self, message: Message) -> None:
        """Store a tell that waits for an owner, unless one appears soon."""
        asyncio.get_running_loop().call_later(DEPOSIT_AFTER, self._no_owner_came, message)

    def deposit(self, message: Message) -> None:
        """Store a tell now; its sender hears when it is stored, and tells the owner, should there be one."""
        assert self._store is not None
        assert message.shard_id is not None
        message.phase = SENT
        self._store.deposit(new_row(message, message.shard_id)).add_done_callback(partial(_deposited, message))

    def _no_owner_came(self, message: Message) -> None:
        if message.phase != PARKED:
            return
        deposit = _Deposit(message, self._wake)
        if self._store is not None:
            self.deposit(deposit)
        elif not self._ways.ask_a_runner(deposit):
            # It keeps its place in the line.
            self.parked(message)
            return
        self._ways.unpark(message)
        message.phase = SENT

    def _wake(self, told: Message) -> None:
        """Tell the shard's owner, now or once there is one; one such message per shard waits."""
        assert told.shard_id is not None
        waiting = self._wakes.get(told.shard_id)
        if waiting is None or waiting.phase != PARKED:
            wake = self._wakes[told.shard_id] = _Wake(told)
            self._ways.route(wake)


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
        self.shard_id = told.shard_id
        self.body = told.body
        self.headers = told.headers
        self.deadline = told.deadline
        self.delivery = msgspec.structs.replace(told.delivery or Durable(), **said)


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
