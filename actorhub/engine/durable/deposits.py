"""Durable messages whose shard has no owner: they are stored for whoever will own it.

A tell does not need an owner to be accepted, so it is stored. An ask waits for its reply in any case, and is routed
once there is an owner; but if a tell to its entity comes after it, it is stored with that tell. The next owner runs
what is in the store first, and nothing must overtake what was sent before it (invariant G).

A deposit takes a share lock on the shard's row, and whoever takes the shard locks that row for update. So either the
deposit is committed first, and the new owner's walk finds it, or it waits for the take and comes after it. In the
second case the owner's walk may be over. That is why, once a message is deposited, its owner is sent a *wake*, which
makes it scan again. What this process sends to the shard is held back until the deposit is stored and the owner has
answered the wake, or it might come before it: the wake may go to a former owner first, or over a link that is broken.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.codec import decode_answer
from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, DuplicateKey, RunnerUnavailable
from actorhub.engine.model.durable_message import new_row
from actorhub.engine.model.records import FOREVER, NEW, PARKED, SENT, Message
from actorhub.engine.runs.store_answers import store_error
from actorhub.engine.runs.stored_payloads import as_earlier
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore, Stored, Verdict

_encode: Final = msgspec.msgpack.Encoder().encode

DEPOSIT_AFTER: Final = 0.25
"""Seconds that a durable tell waits for an owner of its shard before it is deposited."""


class Routing(Protocol):
    """What deposits need of the router."""

    def route(self, message: Message) -> None:
        """Send a message to its shard's owner, or park it until there is one."""
        ...

    def can_reach_owner(self, shard: ShardId) -> bool:
        """Whether the shard has a known owner, here or over a link."""
        ...

    def unpark(self, message: Message) -> Sequence[Message]:
        """Take a message that waits for an owner, and what must run before it, from their queue; return them."""
        ...

    def can_ask_a_runner(self) -> bool:
        """Whether there is a runner that can store a message."""
        ...

    def ask_a_runner(self, message: Message) -> None:
        """Send a message to a runner, which stores it."""
        ...

    def release(self, shards: Iterable[ShardId]) -> None:
        """Route what waits for these shards."""
        ...


class Deposits:
    """Stores durable messages whose shard has no owner; whoever takes the shard runs them."""

    def __init__(self, store: MessageStore | None, routing: Routing, supervisor: Supervisor) -> None:
        self._store = store
        self._routing = routing
        self._supervisor = supervisor
        self._wakes: dict[ShardId, Wake] = {}
        self.under_way: dict[ShardId, int] = {}
        """How many deposits of this process's messages, and wakes, have no answer yet, where there are any."""

    def holds_back(self, message: Message, shard: ShardId) -> bool:
        """Whether a message must wait, because one that was sent before it to the shard is being deposited."""
        delivery = message.delivery
        return (
            shard in self.under_way
            and delivery is not None
            and not delivery.is_stored
            and not isinstance(message, _Deposit)  # It was sent to a runner that is gone, and is what the others await.
        )

    def on_parked(self, message: Message) -> None:
        """Deposit a tell that waits for an owner, unless one appears soon."""
        asyncio.get_running_loop().call_later(DEPOSIT_AFTER, self._on_no_owner, message)

    def deposit(self, message: Message) -> None:
        """Deposit a message now. Its sender is told when it is stored, and wakes the owner if there is one."""
        assert self._store is not None
        assert message.shard_id is not None
        message.phase = SENT
        self._store.deposit(new_row(message, message.shard_id)).add_done_callback(partial(self._on_answer, message))

    def _on_answer(self, message: Message, outcome: "Future[Stored]") -> None:
        if outcome.cancelled() or outcome.exception() or outcome.result().verdict is not Verdict.DUPLICATE_KEY:
            _on_deposited(message, outcome)
        else:
            _ = self._supervisor.spawn(self._compare(message, outcome), "compare payloads")

    async def _compare(self, message: Message, refused: "Future[Stored]") -> None:
        """Deposit a tell as the earlier one that has its key, if both mean the same (see `runs.stored_payloads`)."""
        assert self._store is not None
        assert message.shard_id is not None
        try:
            same = await as_earlier(self._store, new_row(message, message.shard_id), message.spec)
        except ActorhubError as error:
            message.fail_waiting(error)
            return
        if same is None:
            _on_deposited(message, refused)
        else:
            self._store.deposit(same).add_done_callback(partial(_on_deposited, message))

    def _on_no_owner(self, message: Message) -> None:
        if message.phase != PARKED:
            return  # An owner came, or its sender gave up.
        shard = message.shard_id
        assert shard is not None
        # With an owner it is only held back. Were it deposited, the next one would be held back for it, and so on.
        is_held_back = shard in self.under_way and self._routing.can_reach_owner(shard)
        if is_held_back or (self._store is None and not self._routing.can_ask_a_runner()):
            # It stays parked, in its place, and is tried again.
            self.on_parked(message)
            return
        for each in self._routing.unpark(message):
            # A copy, so that the message itself can answer its sender. From here on it is not routed: with a new owner
            # it would arrive twice, once from here and once from the store.
            each.phase = SENT
            self._begin(shard)
            deposit = _Deposit(each, self._on_stored, partial(self._on_over, shard))
            if self._store is not None:
                self.deposit(deposit)
            else:
                self._routing.ask_a_runner(deposit)

    def _on_stored(self, message: Message, message_id: int) -> None:
        """Wake the owner, then let the sender go on: what the sender sends next is held back until the owner is awake.

        With another id, that of an earlier message with its key, nothing new was stored.
        """
        is_new = message_id == message.message_id
        if is_new:
            assert message.shard_id is not None
            self.wake(message, message.shard_id)
        if message.kind == TELL:
            message.complete_waiting(_encode(message_id))
        elif message.phase == SENT:
            # What is left of an ask is to wait for the reply. With an earlier message's id, the owner finds that one.
            message.phase = NEW
            assert message.delivery is not None
            message.delivery = msgspec.structs.replace(message.delivery, is_stored=is_new, is_repeated=True)
            self._routing.route(message)

    def _begin(self, shard: ShardId) -> None:
        self.under_way[shard] = self.under_way.get(shard, 0) + 1

    def _on_over(self, shard: ShardId) -> None:
        """A deposit, or a wake, has its answer; after the last one, what was held back goes on."""
        if self.under_way[shard] > 1:
            self.under_way[shard] -= 1
            return
        del self.under_way[shard]
        # Without an owner it is left in its place: to park it again, after each deposit, would take a timer each time.
        if self._routing.can_reach_owner(shard):
            self._routing.release([shard])

    def wake(self, sent: Message, shard: ShardId) -> None:
        """Wake the shard's owner, now or once there is one: `sent`, or something of its kind, was stored for it."""
        # One wake is enough for all that was deposited before the owner gets it, which is why only a parked one counts.
        waiting = self._wakes.get(shard)
        if waiting is None or waiting.phase != PARKED:
            self._begin(shard)
            wake = self._wakes[shard] = Wake(sent, partial(self._on_over, shard))
            self._routing.route(wake)


def _on_deposited(message: Message, outcome: "Future[Stored]") -> None:
    error = store_error(outcome)
    if error is not None:
        message.fail_waiting(error)
    elif outcome.result().verdict == Verdict.DUPLICATE_KEY:
        target, earlier = f"{message.what}({message.entity_id})", outcome.result().message_id
        text = f"{target}: message {earlier} has used its key before, with another payload"
        message.fail_waiting(DuplicateKey(text))
    else:
        message.complete_waiting(_encode(outcome.result().message_id))


class _Copy(Message):
    """A copy of a message, sent as a tell for another purpose."""

    __slots__ = ("_sent",)

    def __init__(self, sent: Message, **changes: bool) -> None:
        super().__init__(sent.spec, sent.entity_id, TELL)
        self._sent = sent
        self.message_id = sent.message_id
        self.shard_id = sent.shard_id
        self.body = sent.body
        self.headers = sent.headers
        self.deadline = sent.deadline
        self.delivery = msgspec.structs.replace(sent.delivery or Durable(), **changes)


class _Deposit(_Copy):
    """The copy that is stored for whoever will own the shard."""

    __slots__ = ("_on_over", "_on_stored")

    def __init__(self, sent: Message, on_stored: Callable[[Message, int], None], on_over: Callable[[], None]) -> None:
        super().__init__(sent, is_deposit=True)
        self._on_stored = on_stored
        self._on_over = on_over

    def on_completed(self, body: bytes) -> None:
        """It is stored, under its own id or that of an earlier message with its key."""
        try:
            message_id = decode_answer(body, int)
        except RunnerUnavailable as error:
            self.on_failed(error)
            return
        self._on_stored(self._sent, message_id)
        self._on_over()

    def on_failed(self, error: ActorhubError) -> None:
        """Fail the sender's message. An ask fails, too: it may be stored, and what came behind it is."""
        self._sent.fail_waiting(error)
        self._on_over()


class Wake(_Copy):
    """Makes a shard's owner, once there is one, scan the store for what was deposited."""

    __slots__ = ("_on_over",)

    def __init__(self, sent: Message, on_over: Callable[[], None]) -> None:
        super().__init__(sent, is_stored=True, is_deposit=True)
        self._on_over = on_over
        self.deadline = FOREVER
        self.body = b""

    def on_completed(self, body: bytes) -> None:
        """The owner knows: nothing is left to do."""
        self._on_over()

    def on_failed(self, error: ActorhubError) -> None:
        """The owner will find the deposit by its next scan, whenever that is."""
        self._on_over()
