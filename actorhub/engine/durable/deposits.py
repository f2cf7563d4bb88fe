"""Durable tells whose shard has no owner: they are stored for whoever will own it.

A deposit takes a share lock on the shard's row, and whoever takes the shard locks that row for update. So either the
deposit is committed first, and the new owner's walk finds it, or it waits for the take and comes after it. In the
second case the owner's walk may be over. That is why, once a tell is deposited, its owner is sent a *wake*, which makes
it scan again.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.codec import decode_answer
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, DuplicateKey, RunnerUnavailable
from actorhub.engine.model.durable_message import new_row
from actorhub.engine.model.records import FOREVER, PARKED, SENT, Message
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import MessageStore, Stored, Verdict

_encode: Final = msgspec.msgpack.Encoder().encode

DEPOSIT_AFTER: Final = 0.25
"""Seconds that a durable tell waits for an owner of its shard before it is deposited."""


class Routing(Protocol):
    """What deposits need of the router."""

    def route(self, message: Message) -> None:
        """Send a message to its shard's owner, or park it until there is one."""
        ...

    def unpark(self, message: Message) -> None:
        """Take a message out of those that wait for an owner."""
        ...

    def ask_a_runner(self, message: Message) -> bool:
        """Send a message to any runner, which stores it; `False` if there is no runner."""
        ...


class Deposits:
    """Stores durable tells whose shard has no owner; whoever takes the shard runs them."""

    def __init__(self, store: MessageStore | None, routing: Routing) -> None:
        self._store = store
        self._routing = routing
        self._wakes: dict[ShardId, _Wake] = {}

    def on_parked(self, message: Message) -> None:
        """Deposit a tell that waits for an owner, unless one appears soon."""
        asyncio.get_running_loop().call_later(DEPOSIT_AFTER, self._on_no_owner, message)

    def deposit(self, message: Message) -> None:
        """Deposit a tell now. Its sender is told when it is stored, and wakes the owner if there is one."""
        assert self._store is not None
        assert message.shard_id is not None
        message.phase = SENT
        self._store.deposit(new_row(message, message.shard_id)).add_done_callback(partial(_on_deposited, message))

    def _on_no_owner(self, message: Message) -> None:
        if message.phase != PARKED:
            return  # An owner came, or its sender gave up.
        # A copy, so that the tell itself can answer its sender. From here on it is not routed: with a new owner it
        # would arrive twice, once from here and once from the store.
        deposit = _Deposit(message, self._wake)
        if self._store is not None:
            self.deposit(deposit)
        elif not self._routing.ask_a_runner(deposit):
            # It stays parked, in its place, and is tried again.
            self.on_parked(message)
            return
        self._routing.unpark(message)
        message.phase = SENT

    def _wake(self, told: Message) -> None:
        """Wake the shard's owner, now or once there is one. At most one wake per shard is parked."""
        # One wake is enough for all that was deposited before the owner gets it, which is why only a parked one counts.
        assert told.shard_id is not None
        waiting = self._wakes.get(told.shard_id)
        if waiting is None or waiting.phase != PARKED:
            wake = self._wakes[told.shard_id] = _Wake(told)
            self._routing.route(wake)


def _on_deposited(message: Message, outcome: "Future[Stored]") -> None:
    error = store_error(outcome)
    if error is not None:
        message.fail_waiting(error)
    elif outcome.result().verdict == Verdict.DUPLICATE_KEY:
        text = f"{message.what}({message.entity_id}): its key was used before with another payload"
        message.fail_waiting(DuplicateKey(text))
    else:
        message.complete_waiting(_encode(outcome.result().message_id))


class _Copy(Message):
    """A copy of a tell, sent for another purpose."""

    __slots__ = ("_told",)

    def __init__(self, told: Message, **changes: bool) -> None:
        super().__init__(told.spec, told.entity_id, TELL)
        self._told = told
        self.message_id = told.message_id
        self.shard_id = told.shard_id
        self.body = told.body
        self.headers = told.headers
        self.deadline = told.deadline
        self.delivery = msgspec.structs.replace(told.delivery or Durable(), **changes)


class _Deposit(_Copy):
    """The copy that is stored for whoever will own the shard."""

    __slots__ = ("_wake",)

    def __init__(self, told: Message, wake: Callable[[Message], None]) -> None:
        super().__init__(told, is_deposit=True)
        self._wake = wake

    def on_completed(self, body: bytes) -> None:
        """Wake the owner, then let the sender go on: what the sender sends next travels behind the wake.

        With another id in the answer, that of an earlier message with its key, nothing new was stored.
        """
        try:
            is_new = decode_answer(body, int) == self.message_id
        except RunnerUnavailable as error:
            self._told.fail_waiting(error)
            return
        if is_new:
            self._wake(self._told)
        self._told.complete_waiting(body)

    def on_failed(self, error: ActorhubError) -> None:
        """Fail the sender's tell."""
        self._told.fail_waiting(error)


class _Wake(_Copy):
    """Makes a shard's owner, once there is one, scan the store for what was deposited."""

    __slots__ = ()

    def __init__(self, told: Message) -> None:
        super().__init__(told, is_stored=True, is_deposit=True)
        self.deadline = FOREVER
        self.body = b""

    def on_completed(self, body: bytes) -> None:
        """The owner knows: nothing is left to do."""

    def on_failed(self, error: ActorhubError) -> None:
        """The owner will find the deposit by its next scan, whenever that is."""
