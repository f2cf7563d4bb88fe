"""A durable message on the runner that owns its shard, from the moment it is known there until it is settled."""

import enum
from typing import Protocol

from actorhub.core.address import ShardId
from actorhub.core.envelope import ASK, Durable
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.records import HostedShard, Message
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import NewMessage


class Place(enum.Enum):
    """Where a durable message is. `durable.in_memory` and `durable.attempts` move it, nobody else."""

    ARRIVED = enum.auto()
    """Made just now; the same synchronous step finds a place for it."""
    STORING = enum.auto()
    """On its way into the store, to be scheduled, or queued, once it is there."""
    SPILLING = enum.auto()
    """On its way into the store, and out of memory once it is there: the backlog's loader brings it in again."""
    MAILBOX = enum.auto()
    """In the mailbox of its entity. It may still be on its way into the store."""
    STARTING = enum.auto()
    """It has its entity's turn, and waits for the store before it runs."""
    RUNNING = enum.auto()
    """Its handler runs, or the outcome of the run is on its way into the store."""
    SCHEDULED = enum.auto()
    """It waits for its time."""
    GONE = enum.auto()
    """Out of memory: settled, in the store only, or another runner's."""


class RunEvents(Protocol):
    """What is told of the runs of durable messages."""

    def run_committed(self, message: "DurableMessage", body: bytes) -> None:
        """The run returned, and everything that it leaves behind is committed."""
        ...

    def run_failed(self, message: "DurableMessage", error: ActorhubError) -> None:
        """The run raised, or the message could not be started; nothing of it is committed."""
        ...

    def run_taken_back(self, message: "DurableMessage") -> None:
        """The message cannot start where it is; nothing ran."""
        ...


def new_row(message: Message, shard: ShardId, *, epoch: int = 0, attempts: int = 0) -> NewMessage:
    """Return the row of a message that is to be stored, as its sender made it."""
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

    Its callers' deadlines are theirs: it has none, and runs whoever waits.
    """

    __slots__ = ("attempts", "due", "early", "events", "failure", "is_counted", "is_stored", "key", "place", "shard",
                 "waiters")  # fmt: skip

    def __init__(
        self, events: RunEvents, shard: HostedShard, *, spec: HandlerSpec, entity_id: str, message_id: int
    ) -> None:
        super().__init__(spec, entity_id, ASK)
        self.events = events
        self.shard = shard
        self.shard_id = shard.id
        self.message_id = message_id
        self.place = Place.ARRIVED
        self.key: str | None = None
        self.attempts = 0
        """Runs that the store counts; the present one included once `is_counted`."""
        self.is_counted = False
        """The store counts the run that is about to start, or under way."""
        self.is_stored = False
        """The store has said that it has it; until then the answer to its insert is on its way."""
        self.due = 0.0
        """Seconds since the Unix epoch, by the store's clock."""
        self.early = 0
        """How often the store said that it was not due yet."""
        self.failure: ActorhubError | None = None
        """What it failed with before it was stored."""
        self.waiters: list[Message] = []
        """Callers that wait for its reply, and senders that wait until it is stored."""

    @property
    def entity(self) -> tuple[str, str]:
        """Type and id of its entity."""
        return self.spec.entity_type, self.entity_id

    def taken_back(self) -> bool:
        """Stay in the store: the loader, here or at the next owner, brings it in again."""
        self.events.run_taken_back(self)
        return True

    def completed(self, body: bytes) -> None:
        """Tell its callers."""
        self.events.run_committed(self, body)

    def failed(self, error: ActorhubError) -> None:
        """Settle it with the error, or have it run again."""
        self.progress = None  # the next run asks the store
        self.events.run_failed(self, error)
