"""The records behind one hosted entity. A cell without work owns no task, no queue and no timer."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from actorhub.core.address import ShardId
from actorhub.engine.model.message import Message
from actorhub.engine.model.spec import EntitySpec, HandlerSpec

if TYPE_CHECKING:
    from actorhub.engine.host import Host
    from actorhub.engine.model.durable_message import DurableMessage

ACTIVATING: Final = 0
"""The instance is being made; messages queue."""
ACTIVE: Final = 1
CLOSING: Final = 2
"""No new run starts; passivates after the running ones. Messages queue for the next activation, here or elsewhere."""
DEAD: Final = 3
"""Forced out: nothing of it may be committed or replied any more."""

EXCLUSIVE: Final = -1
_UNLIMITED: Final = 1 << 30


class StateRecord:
    """What is committed of an entity."""

    __slots__ = ("data", "version")

    def __init__(self, version: int, data: bytes) -> None:
        self.version = version
        self.data = data


class Cell:
    """One resident entity: its instance, its mailbox, and who runs."""

    __slots__ = ("durable", "entity_id", "hosted", "instance", "is_behind", "kept", "last_used", "load", "nested",
                 "phase", "queue", "record", "returning", "shard", "streams")  # fmt: skip

    def __init__(self, hosted: "HostedType", shard: "HostedShard", entity_id: str) -> None:
        self.hosted = hosted
        self.shard = shard
        self.entity_id = entity_id
        self.instance: Any = None
        self.phase = ACTIVATING
        self.load = 0
        """`EXCLUSIVE`, or how many shared runs there are."""
        self.nested = 0
        """Runs of reentrant handlers beside the ones that `load` counts."""
        self.queue: deque[Message] | None = None
        """Messages not started; exists only while there are any."""
        self.record: StateRecord | None = None
        """The committed state of an entity that keeps some."""
        self.last_used = 0.0
        self.kept = False
        """Not passivated when idle (`keep_alive`)."""
        self.streams: set[asyncio.Task[None]] | None = None
        self.is_behind = shard.is_behind
        """Durable messages of it may wait in the store: further ones must queue up behind them, there."""
        self.durable = 0
        """Durable messages that are in its mailbox or run."""
        self.returning: deque[asyncio.Future[None]] | None = None
        """Interleaved runs that wait for the turn, to go on; exists only while there are any."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits or streams."""
        return self.load == 0 and self.nested == 0 and self.queue is None and not self.streams

    @property
    def may_commit(self) -> bool:
        """Whether the entity's owner can prove itself right now, and the activation was not forced out."""
        return self.phase != DEAD and self.shard.host.lease_is_fresh()

    @property
    def address(self) -> str:
        """`type/id`."""
        return f"{self.hosted.spec.name}/{self.entity_id}"

    def admit(self, spec: HandlerSpec) -> bool:
        """Count a run of `spec` as started if the rules of turns allow one now, else change nothing.

        `Turns.ended` gives the turn back.
        """
        load = self.load
        if load == 0:
            self.load = 1 if spec.readonly or self.hosted.spec.concurrency > 1 else EXCLUSIVE
            return True
        if load > 0 and self.returning is None:
            limit = _UNLIMITED if spec.readonly else self.hosted.spec.concurrency
            if limit > 1 and load < limit:
                self.load = load + 1
                return True
        return False

    def next_runnable(self) -> Message | None:
        """Take the head of the queue if it may start now; it is counted as started."""
        queue = self.queue
        if queue is None or self.phase != ACTIVE or not self.admit(queue[0].spec):
            return None
        message = queue.popleft()
        if not queue:
            self.queue = None
        return message

    def take_queue(self) -> "deque[Message]":
        """Remove and return every message that was not started."""
        queue, self.queue = self.queue, None
        return queue if queue is not None else deque()


class HostedType:
    """An entity type that this process can host, with its resident cells, least recently placed first."""

    __slots__ = ("cells", "factory", "is_simple", "spec")

    def __init__(self, spec: EntitySpec, factory: Callable[[], Any]) -> None:
        self.spec = spec
        self.factory = factory
        self.cells: OrderedDict[str, Cell] = OrderedDict()
        self.is_simple = spec.state is None and spec.on_activate is None and spec.singleton_id is None
        """Activation is one synchronous call of the factory."""


class HostedShard:
    """A shard that this process owns."""

    __slots__ = (
        "cells",
        "draining",
        "emptied",
        "epoch",
        "held",
        "host",
        "id",
        "is_behind",
        "messages",
        "told",
        "waiting",
    )

    def __init__(self, host: "Host", shard: ShardId, epoch: int) -> None:
        self.host = host
        self.id = shard
        self.epoch = epoch
        self.cells: set[Cell] = set()
        self.draining = False
        self.held: deque[Message] = deque()
        """Messages that came, or were left over, while it drains: the next owner's."""
        self.emptied: asyncio.Future[None] | None = None
        self.messages: dict[int, DurableMessage] = {}
        """Durable messages that are in memory, by id."""
        self.waiting: dict[int, list[Message]] = {}
        """Who waits for durable messages that are in the store only."""
        self.is_behind = False
        """Durable messages of entities that are not resident may wait in the store."""
        self.told: set[Message] = set()
        """Durable tells of its entities that are committed, and of which the receiver may not know yet."""

    @property
    def queued(self) -> int:
        """How many messages wait in its mailboxes."""
        return len(self.held) + sum(len(cell.queue) for cell in self.cells if cell.queue is not None)
