"""A durable message on the runner that owns its shard, from the moment it is known there until it is settled."""

import asyncio
import enum
from collections.abc import Iterable, Sequence
from typing import Protocol

from actorhub.core.address import ShardId
from actorhub.core.envelope import ASK, Durable
from actorhub.core.errors import ActorhubError, MessageCancelled
from actorhub.engine.model.records import SENT, HostedShard, Message
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import NewMessage, RunStart


class Place(enum.Enum):
    """Where a durable message is: in exactly one place.

    `durable.in_memory` moves it. Beside that, `durable.intake` says how a new one is stored, and `durable.attempts` and
    `durable.settlement` move one that has its turn towards `RUNNING`.
    """

    ARRIVED = enum.auto()
    """In no place yet: made, or taken from its entity, by the synchronous step that is about to place it."""
    STORING = enum.auto()
    """On its way into the store; once it is there it is scheduled or queued."""
    SPILLING = enum.auto()
    """On its way into the store; once it is there it leaves memory, and the backlog's loader brings it in again."""
    MAILBOX = enum.auto()
    """In its entity's mailbox, or with a turn and waiting for a carrier. Its insert may still be under way."""
    STARTING = enum.auto()
    """It waits until the store counts the run: with its entity's turn, or first in the mailbox of an entity that is to
    be activated for it."""
    RUNNING = enum.auto()
    """Its handler is running, or the outcome of the run is on its way into the store."""
    SCHEDULED = enum.auto()
    """It waits for its time."""
    GONE = enum.auto()
    """Out of memory: settled, in the store only, or another runner's."""


class RunEvents(Protocol):
    """Hears how the runs of durable messages end."""

    def on_run_committed(self, message: "DurableMessage", body: bytes) -> None:
        """The handler returned, and everything that the run leaves behind is committed."""
        ...

    def on_run_failed(self, message: "DurableMessage", error: ActorhubError) -> None:
        """The handler raised, or the message could not be started; nothing of the run is committed."""
        ...

    def on_run_not_started(self, message: "DurableMessage") -> None:
        """The message cannot start where it is. Nothing ran."""
        ...


def new_row(message: Message, shard: ShardId, *, epoch: int = 0, attempts: int = 0) -> NewMessage:
    """Return the row of a message that is about to be stored."""
    delivery = message.delivery or Durable()
    return NewMessage(
        message_id=message.message_id,
        shard=shard,
        epoch=epoch,
        entity_type=message.spec.entity_type,
        entity_id=message.entity_id,
        handler=message.spec.name,
        body=message.body,
        headers=message.headers,
        key=delivery.key,
        payload_hash=delivery.payload_hash,
        deliver_at=delivery.deliver_at or None,
        delay=delivery.delay or None,
        attempts=attempts,
        repeated=delivery.is_repeated or delivery.is_deposit,
    )


class DurableMessage(Message):
    """A row of the store, or one that is being stored, with the callers that wait for it.

    It has no deadline. Its callers have theirs, and it runs whether or not somebody still waits.
    """

    __slots__ = ("attempts", "changed", "due", "early", "events", "failure", "is_counted", "is_stored", "key", "place",
                 "shard", "started_at", "waiters")  # fmt: skip

    def __init__(
        self, events: RunEvents, shard: HostedShard, *, spec: HandlerSpec, entity_id: str, message_id: int
    ) -> None:
        Message.__init__(self, spec, entity_id, ASK)
        self.events = events
        self.shard = shard
        self.shard_id = shard.id
        self.message_id = message_id
        self.place = Place.ARRIVED
        self.key: str | None = None
        self.attempts = 0
        """Runs that the store has counted, including the present one once `is_counted` is set."""
        self.is_counted = False
        """The store has counted the run that is about to start, or is under way."""
        self.is_stored = False
        """The store has confirmed that it holds the message; until then its insert is under way."""
        self.due = 0.0
        """Seconds since the Unix epoch, by the store's clock."""
        self.started_at = 0.0
        """Monotonic seconds at which its present run started, or its last one."""
        self.early = 0
        """How often the store answered that it was not due yet."""
        self.failure: ActorhubError | None = None
        """The error with which it failed before it was stored."""
        self.waiters: list[Message] = []
        """Callers that wait for the reply, and senders that wait until the message is stored."""
        self.changed: asyncio.Future[None] | None = None
        """Done once the message is stored, counted, or at another place; exists while somebody waits for that."""

    @property
    def chains(self) -> Iterable[Sequence[str]]:
        """The chains of the calls that wait for its reply."""
        return (caller.chain for caller in self.waiters if caller.phase == SENT)

    @property
    def is_running(self) -> bool:
        """Whether its handler is running, or the outcome of the run is on its way into the store."""
        return self.is_counted and self.place is Place.RUNNING  # and not being settled without a run

    @property
    def is_cancelled(self) -> bool:
        """Whether its run is being ended because the message was cancelled."""
        return isinstance(self.abandoned_for, MessageCancelled)

    def next_change(self) -> "asyncio.Future[None]":
        """Return what is done when whoever waits for the message to be stored, counted or moved is to look again."""
        if self.changed is None or self.changed.done():
            self.changed = asyncio.get_running_loop().create_future()
        return self.changed

    def on_changed(self) -> None:
        """Have whoever waits for the message look again: the activation of its entity, and requests about it."""
        if self.changed is not None and not self.changed.done():
            self.changed.set_result(None)

    def on_not_started(self) -> bool:
        """Stay in the store: the loader, here or at the next owner, will bring it in again."""
        self.events.on_run_not_started(self)
        return True

    def on_completed(self, body: bytes) -> None:
        """Tell its callers."""
        self.events.on_run_committed(self, body)

    def on_failed(self, error: ActorhubError) -> None:
        """Have it settled with the error, or run again."""
        self.events.on_run_failed(self, error)


def start_of(message: DurableMessage) -> RunStart:
    """Return the run of a message that the store counted last."""
    return RunStart(message.message_id, message.shard.id, message.shard.epoch, message.attempts)


def next_start_of(message: DurableMessage) -> RunStart:
    """Return the run of a message that the store is to count next."""
    return RunStart(message.message_id, message.shard.id, message.shard.epoch, message.attempts + 1)
