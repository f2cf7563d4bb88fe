"""The records of the engine that point at each other: a message, the cell it runs on, and what hosts the cell.

They hold facts and answer questions about them. What may happen next is decided by `runs.scheduler` for cells, and by
`durable.in_memory` for durable messages.
"""

import asyncio
import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context, ContextVar
from typing import Any, ClassVar, Final, Protocol

from actorhub.core.address import ShardId
from actorhub.core.envelope import ASK, Durable
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.storage.message_ports import RunTransaction

NEW: Final = 0
"""Not handed to any mailbox yet: failing it promises that no handler ran."""
PARKED: Final = 1
"""Waits in the router for an owner."""
SENT: Final = 2
"""In somebody else's hands, a peer's or the store's: the outcome is theirs to tell."""
QUEUED: Final = 3
"""In a mailbox of this process."""
RUNNING: Final = 4
COMMITTING: Final = 5
"""The handler is done; its state is being committed and cannot be called back."""
DONE: Final = 6

FOREVER: Final = 1e15
"""A deadline that never comes, in seconds; finite, so that it needs no special case."""


class RunKind(enum.Enum):
    """What runs under a message."""

    HANDLER = enum.auto()
    """A handler that somebody called."""
    MAIN_LOOP = enum.auto()
    """A singleton's `run`: nobody called it, and it has no commit of its own to wait for."""
    STEP = enum.auto()
    """A step of a durable handler or of a `run`: committed by itself, inside the other run's turn."""
    HOOK = enum.auto()
    """`on_activate` and the like."""


class Recipient(Protocol):
    """The peer that a message was sent to."""

    def recall(self, message: "Message") -> None:
        """Nobody waits for the message: have the peer drop it, and forget it."""
        ...

    def grant(self, message: "Message", count: int) -> None:
        """The consumer took `count` items of the stream: the peer's producer may send as many more."""
        ...

    def ask_outcome(self, message: "Message") -> None:
        """The caller's time is up: have the peer end the message and say whether its handler started."""
        ...


class Producer(Protocol):
    """What makes the items of a stream that runs in this process."""

    def grant(self, count: int) -> None:
        """Let `count` more items leave, because the consumer took as many."""
        ...

    def turn_granted(self) -> None:
        """Go on: the entity is this stream's for one more step."""
        ...


class InterleavedTurn(Protocol):
    """The turn of a run that lets others have it while it waits."""

    def drive(self, context: Context, coroutine: Coroutine[Any, Any, Any], step: Any) -> Generator[Any, Any, Any]:
        """Run the rest of `coroutine`, every step inside `context` and its turn."""
        ...

    def held(self) -> AbstractAsyncContextManager[None]:
        """Keep the turn during the block, through its awaits."""
        ...


class Message:
    """One call of one handler, or one run that nobody called (`run_kind`). Subclasses say where the reply goes.

    Exactly one of `completed` and `failed` is called, once, by whoever moves `phase` to `DONE`.
    """

    __slots__ = (
        "abandoned_for",
        "args",
        "body",
        "cell",
        "chain",
        "credit",
        "deadline",
        "delivery",
        "entity_id",
        "epoch",
        "headers",
        "hops",
        "interleaving",
        "is_nested",
        "kind",
        "message_id",
        "observed",
        "outbox",
        "peer",
        "phase",
        "producer",
        "progress",
        "request_id",
        "shard_id",
        "spec",
        "task",
        "transaction",
        "waits_for_room",
    )

    run_kind: ClassVar[RunKind] = RunKind.HANDLER
    skip: int = 0
    """Durable stream: how many items, from the first, the consumer has already. A slot of the classes that need it."""

    def __init__(self, spec: HandlerSpec, entity_id: str, kind: int = ASK) -> None:  # noqa: PLR0915 - a line per slot
        self.spec = spec
        self.entity_id = entity_id
        self.kind = kind
        """What travels, see `core.envelope`: an ask, a tell, a stream, …"""
        self.args: tuple[Any, ...] | None = None
        """Decoded arguments, private to the run; `None` while only `body` exists."""
        self.body: bytes = b""
        self.deadline: float = FOREVER
        """Monotonic seconds."""
        self.chain: tuple[str, ...] = ()
        """`type/id` of the entities that wait for this call, outermost first."""
        self.headers: dict[str, str] | None = None
        self.phase = NEW
        self.hops = self.message_id = 0
        self.epoch = 0
        """Epoch of the shard when the run started."""
        self.producer: Producer | None = None
        """Of a stream that runs here."""
        self.peer: Recipient | None = None
        """Whom it was sent to."""
        self.request_id = 0
        """Its number on that peer's link."""
        self.outbox: list[Message] | None = None
        """What the handler told, to be sent once its run is committed."""
        self.waits_for_room = False
        """Queue beyond the mailbox's capacity instead of failing."""
        self.is_nested = False
        """Runs beside another run of its cell (`reentrant`, or an interleaved run that waits)."""
        self.credit = 0
        """Stream: how many items the consumer takes at first."""
        self.abandoned_for: ActorhubError | None = None
        """Why a run is being cancelled, or a sent call was called back."""
        self.shard_id: ShardId | None = None
        self.cell: Cell | None = None
        """Where it runs or queues."""
        self.task: asyncio.Task[Any] | None = None
        """The task that a suspended run belongs to."""
        self.delivery: Durable | None = None
        """What the caller of a durable handler says about storing its message; `None`: the call is volatile."""
        self.transaction: RunTransaction | None = None
        """The transaction that the handler opened for its own SQL."""
        self.interleaving: InterleavedTurn | None = None
        """The turn of an interleaved run."""
        self.progress: Progress | None = None
        """The checkpoints of the run, once it asked for some."""
        self.observed: Any = None
        """What the observer of runs remembers of it."""

    @property
    def address(self) -> str:
        """`type/id` of the target."""
        return f"{self.spec.entity_type}/{self.entity_id}"

    @property
    def what(self) -> str:
        """`type.handler`, for error messages."""
        return f"{self.spec.entity_type}.{self.spec.name}"

    @property
    def was_sent_before(self) -> bool:
        """Whether it is a durable call that was sent on after its receiver got lost, and so may have run."""
        return self.delivery is not None and self.delivery.is_repeated

    def drop_outbox(self) -> None:
        """Forget what the handler told: its run does not count."""
        self.outbox = None

    def taken_back(self) -> bool:
        """Whether the message, which could not start where it was, looks after itself instead of being routed again."""
        return False

    def told_by(self, under_way: "set[Message]") -> None:
        """Be in `under_way` until the receiver knows of this tell."""

    def resumes(self) -> bool:
        """Whether a stream whose producer was lost goes on at another one; it is about to be routed then."""
        return False

    def accepted(self) -> None:
        """A tell is in a mailbox: from now on its sender does not hear of it."""

    def completed(self, body: bytes) -> None:
        """Take the encoded result; for a stream, its end."""
        raise AssertionError

    def failed(self, error: ActorhubError) -> None:
        """Take the error that the call ended with."""
        raise AssertionError

    def complete_waiting(self, body: bytes) -> None:
        """Complete a call that is in somebody else's hands; one whose caller went away is left alone."""
        if self.phase == SENT:
            self.phase = DONE
            self.completed(body)

    def fail_waiting(self, error: ActorhubError) -> None:
        """Fail a call that is in somebody else's hands; one whose caller went away is left alone."""
        if self.phase == SENT:
            self.phase = DONE
            self.failed(error)

    def chunk(self, bodies: Sequence[bytes]) -> None:
        """Take items of a stream, encoded."""
        raise AssertionError


class AwaitedMessage(Message):
    """A message whose outcome is a future's."""

    __slots__ = ("future",)

    def __init__(self, spec: HandlerSpec, entity_id: str, kind: int = ASK) -> None:
        super().__init__(spec, entity_id, kind)
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def completed(self, body: bytes) -> None:
        """Take the encoded result."""
        if not self.future.done():
            self.future.set_result(body)

    def failed(self, error: ActorhubError) -> None:
        """Take the error."""
        if not self.future.done():
            self.future.set_exception(error)


running: ContextVar[Message | None] = ContextVar("actorhub_running", default=None)
"""The message whose handler runs in this context; `None` outside of handlers."""


ACTIVATING: Final = 0
"""The instance is being made; messages queue."""
ACTIVE: Final = 1
CLOSING: Final = 2
"""No new run starts; passivates after the running ones. Messages queue for the next activation, here or elsewhere."""
DEAD: Final = 3
"""Forced out: nothing of it may be committed or replied."""

EXCLUSIVE: Final = -1
_UNLIMITED: Final = 1 << 30


class StateRecord:
    """What is committed of an entity."""

    __slots__ = ("data", "version")

    def __init__(self, version: int, data: bytes) -> None:
        self.version = version
        self.data = data


class Cell:
    """One resident entity: its instance, its mailbox, and who runs. Without work it owns no task, queue or timer."""

    __slots__ = ("durable_count", "entity_id", "has_backlog", "hosted_type", "instance", "kept", "last_used", "load",
                 "nested", "phase", "queue", "record", "returning", "shard", "streams")  # fmt: skip

    def __init__(self, hosted_type: "HostedType", shard: "HostedShard", entity_id: str) -> None:
        self.hosted_type = hosted_type
        self.shard = shard
        self.entity_id = entity_id
        self.instance: Any = None
        self.phase = ACTIVATING
        self.load = 0
        """`EXCLUSIVE`, or how many shared runs there are."""
        self.nested = 0
        """Runs beside the ones that `load` counts: of reentrant handlers, and interleaved ones that wait."""
        self.queue: deque[Message] | None = None
        """Messages not started; exists only while there are any."""
        self.record: StateRecord | None = None
        """The committed state of an entity that keeps some."""
        self.last_used = 0.0
        self.kept = False
        """Not passivated when idle (`keep_alive`)."""
        self.streams: set[asyncio.Task[None]] | None = None
        self.has_backlog = shard.has_backlog
        """Durable messages of it may wait in the store: further ones must queue up behind them, there."""
        self.durable_count = 0
        """Durable messages that are in its mailbox or run."""
        self.returning: deque[asyncio.Future[None]] | None = None
        """Interleaved runs that wait for the turn, to go on; exists only while there are any."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits or streams."""
        return self.load == 0 and self.nested == 0 and self.queue is None and not self.streams

    @property
    def can_commit(self) -> bool:
        """Whether the entity's owner can prove itself right now, and the activation was not forced out."""
        return self.phase != DEAD and self.shard.lease.is_fresh()

    @property
    def is_singleton(self) -> bool:
        """Whether it is a singleton's."""
        return self.hosted_type.spec.singleton_id is not None

    @property
    def address(self) -> str:
        """`type/id`."""
        return f"{self.hosted_type.spec.name}/{self.entity_id}"

    @property
    def entity(self) -> tuple[str, str]:
        """Type and id."""
        return self.hosted_type.spec.name, self.entity_id

    def admit(self, spec: HandlerSpec) -> bool:
        """Count a run of `spec` as started if the rules of turns allow one now, else change nothing.

        `Scheduler.ended` gives the turn back.
        """
        load = self.load
        if load == 0:
            self.load = 1 if spec.readonly or self.hosted_type.spec.concurrency > 1 else EXCLUSIVE
            return True
        if load > 0 and self.returning is None:
            limit = _UNLIMITED if spec.readonly else self.hosted_type.spec.concurrency
            if limit > 1 and load < limit:
                self.load = load + 1
                return True
        return False

    def give_turn(self, message: Message) -> bool:
        """Let a message that comes now run, unless others wait or run that it must not run beside."""
        if self.phase == ACTIVE and self.queue is None and self.admit(message.spec):
            message.cell = self
            message.phase = RUNNING
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

    def take_queue(self) -> deque[Message]:
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

    __slots__ = ("cells", "draining", "emptied", "epoch", "has_backlog", "held", "id", "lease", "told")

    def __init__(self, shard: ShardId, epoch: int, lease: Lease) -> None:
        self.id = shard
        self.epoch = epoch
        self.lease = lease
        """Of the runner: it ends for all shards at once."""
        self.cells: set[Cell] = set()
        self.draining = False
        self.held: deque[Message] = deque()
        """Messages that came, or were left over, while it drains: the next owner's."""
        self.emptied: asyncio.Future[None] | None = None
        self.has_backlog = False
        """Durable messages of entities that are not resident may wait in the store."""
        self.told: set[Message] = set()
        """Durable tells of its entities that are committed, and of which the receiver may not know yet."""

    @property
    def queued(self) -> int:
        """How many messages wait in its mailboxes."""
        return len(self.held) + sum(len(cell.queue) for cell in self.cells if cell.queue is not None)
