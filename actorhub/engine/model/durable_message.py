"""A durable message on the runner that owns its shard, from the moment it is known there until it is settled."""

from typing import Protocol

from actorhub.core.address import ShardId
from actorhub.core.envelope import ASK, Durable
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.cell import HostedShard
from actorhub.engine.model.message import Message
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import NewMessage


class Runs(Protocol):
    """What is told of the runs of durable messages."""

    def run_committed(self, message: "DurableMessage", body: bytes) -> None:
        """The run returned, and everything that it leaves behind is committed."""
        ...

    def run_failed(self, message: "DurableMessage", error: ActorhubError) -> None:
        """The run raised, or the message could not be started; nothing of it is committed."""
        ...


def new_row(message: Message, shard: ShardId, *, epoch: int = 0, attempts: int = 0) -> NewMessage:
    """Return the row of a message that is to be stored, as its sender made it."""
    durable = message.durable or Durable()
    return NewMessage(
        message_id=message.message_id,
        shard=shard,
        epoch=epoch,
        entity_type=message.spec.entity_type,
        entity_id=message.entity_id,
        handler=message.spec.name,
        body=message.body,
        headers=message.headers,
        key=durable.key,
        payload_hash=durable.payload_hash,
        deliver_at=durable.deliver_at or None,
        delay=durable.delay or None,
        attempts=attempts,
        repeated=durable.is_repeated or durable.is_deposit,
    )


class DurableMessage(Message):
    """A row of the store, or one that is being stored, with the callers that wait for it.

    Its callers' deadlines are theirs: it has none, and runs whoever waits.
    """

    __slots__ = (
        "attempts",
        "due",
        "early",
        "failure",
        "hosted",
        "interleaving",
        "is_counted",
        "is_dropped",
        "is_loaded",
        "is_seated",
        "is_set_aside",
        "is_starting",
        "is_stored",
        "is_storing",
        "key",
        "progress",
        "runs",
        "waiters",
    )

    def __init__(self, runs: Runs, hosted: HostedShard, *, spec: HandlerSpec, entity_id: str, message_id: int) -> None:
        super().__init__(spec, entity_id, ASK)
        self.runs = runs
        self.interleaving = None
        self.progress = None
        self.hosted = hosted
        self.shard = hosted.id
        self.message_id = message_id
        self.key: str | None = None
        self.attempts = 0
        """Runs that the store counts; the present one included once `is_counted`."""
        self.is_counted = False
        """The store counts the run that is about to start, or under way."""
        self.is_storing = False
        """The answer to its insert is on its way."""
        self.is_stored = False
        self.is_starting = False
        """It has its entity's turn, and waits for the store before it runs."""
        self.is_dropped = False
        """It is no business of this process any more."""
        self.is_set_aside = False
        """It stays in the store, for the loader to bring in."""
        self.is_loaded = False
        """The backlog's loader brought it in."""
        self.is_seated = False
        """It is in the mailbox of its entity, or has its turn."""
        self.due = 0.0
        """Seconds since the Unix epoch, by the store's clock."""
        self.early = 0
        """How often the store said that it was not due yet."""
        self.failure: ActorhubError | None = None
        """What it failed with before it was stored."""
        self.waiters: list[Message] = []
        """Callers that wait for its reply, and senders that wait until it is stored."""

    def taken_back(self) -> bool:
        """Stay in the store: the loader, here or at the next owner, brings it in again."""
        self.hosted.host.delivery.set_aside(self)
        return True

    def completed(self, body: bytes) -> None:
        """Tell its callers."""
        self.runs.run_committed(self, body)

    def failed(self, error: ActorhubError) -> None:
        """Settle it with the error, or have it run again."""
        self.progress = None  # the next run asks the store
        self.runs.run_failed(self, error)
