"""The records of the engine that point at each other: a message, the cell it runs on, and what hosts the cell.

They hold facts. `runs.scheduler` decides what happens next on a cell, `durable.in_memory` where a message goes next.
"""

import asyncio
import copy
import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any, ClassVar, Final, Protocol

from actorhub.core.address import ShardId
from actorhub.core.carried import Carried
from actorhub.core.envelope import ASK, Durable
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.spec import EntitySpec, HandlerSpec

# The phases of a message. They decide what an error may claim about it (invariant F): what fails in NEW, PARKED or
# QUEUED may promise that no handler ran, unless the message was sent before; in SENT nobody here knows; in RUNNING and
# COMMITTING the outcome is open until the handler, or the store, has answered.
NEW: Final = 0
"""In nobody's hands."""
PARKED: Final = 1
"""Waits in the router for an owner."""
SENT: Final = 2
"""Handed to a peer or to the store, which will say how it ended."""
QUEUED: Final = 3
"""In a mailbox of this process, or waits for its entity's place in memory (`cell` is `None` then)."""
RUNNING: Final = 4
"""It has its entity's turn; the handler runs, or is about to."""
COMMITTING: Final = 5
"""The handler is done. What it leaves behind is being committed, which cannot be called back."""
DONE: Final = 6

FOREVER: Final = 1e15
"""A deadline that never comes, in seconds; finite, so that it needs no special case."""

LENDS: Final = "*"
"""Begins a link of a chain whose entity lends its turn while it waits (an interleaved run): it can be called back."""


class RunKind(enum.Enum):
    """What runs under a message."""

    HANDLER = enum.auto()
    """A handler that somebody called."""
    MAIN_LOOP = enum.auto()
    """A singleton's `run`: nobody called it, and it commits by `save` alone."""
    STEP = enum.auto()
    """A step of a durable handler or of a `run`: it has a commit of its own, within the other run's turn."""
    HOOK = enum.auto()
    """`on_activate` and the like."""


class Recipient(Protocol):
    """The peer that a message was sent to."""

    def recall(self, message: "Message") -> None:
        """Nobody waits for the message any longer: have the peer drop it, and forget it here."""
        ...

    def grant(self, message: "Message", count: int) -> None:
        """Let the peer's producer send `count` more items, because the consumer took as many."""
        ...

    def ask_outcome(self, message: "Message") -> None:
        """Have the peer end a message whose deadline passed, and say whether its handler had started."""
        ...


class Producer(Protocol):
    """What makes the items of a stream that runs in this process."""

    @property
    def has_turn(self) -> bool:
        """Whether a step of it runs, or its clean-up, with the entity's turn."""
        ...

    def grant(self, count: int) -> None:
        """Let `count` more items leave, because the consumer took as many."""
        ...

    def on_turn_granted(self) -> None:
        """Go on: the entity is this stream's for one more step."""
        ...

    def stop(self) -> None:
        """The activation ends, or has ended: cut the stream short; wait for no turn of a dead cell."""
        ...

    def expect_end(self, error: ActorhubError) -> None:
        """Its task was cancelled for that reason: give a step up that goes on nevertheless."""
        ...


class InterleavedTurn(Protocol):
    """The turn of a run that lets others have it while it waits."""

    coroutine: Coroutine[Any, Any, Any] | None

    def drive(
        self,
        context: Context,
        coroutine: Coroutine[Any, Any, Any],
        step: Any,
        take_step: Callable[[Context, Callable[[], Any]], Any],
    ) -> Generator[Any, Any, Any]:
        """Run the rest of `coroutine`, each step in `context` and with the turn."""
        ...

    def held(self) -> AbstractAsyncContextManager[None]:
        """Keep the turn during the block, also while it awaits."""
        ...


class Message:
    """One call of one handler, or one run that nobody called (`run_kind`). Subclasses say where the reply goes.

    Whoever moves `phase` to `DONE` tells the outcome to `on_completed` or `on_failed`, unless nobody waits for it.
    There is no `await` between the check of the phase and its change, so only one outcome counts. A caller whose
    deadline passes during the run learns of that before; what `on_failed` is told afterwards is ignored then.

    Subclasses of which each call makes one call this `__init__` by name: `super()` takes a tenth of a microsecond.
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
        "is_nested",
        "kind",
        "message_id",
        "observed",
        "peer",
        "phase",
        "producer",
        "request_id",
        "shard_id",
        "spec",
        "task",
        "waits_for_room",
    )

    run_kind: ClassVar[RunKind] = RunKind.HANDLER
    progress: Progress | None = None
    """A main loop: its checkpoints, loaded before it starts. A slot of the class that needs it, like the next one."""
    skip: int = 0
    """Durable stream: how many items the consumer has already, from the first. A slot only of classes that need it."""

    def __init__(self, spec: HandlerSpec, entity_id: str, kind: int = ASK) -> None:
        self.spec = spec
        self.entity_id = entity_id
        self.kind = kind
        """Ask, tell, stream, …; see `core.envelope`."""
        self.args: tuple[Any, ...] | None = None
        """Decoded arguments, private to the run; `None` while only `body` exists."""
        self.body: bytes = b""
        self.deadline: float = FOREVER
        """Monotonic seconds."""
        self.chain: tuple[str, ...] = ()
        """`type/id` of each entity that waits for this call, outermost first; some begin with `LENDS`."""
        self.headers: dict[str, str] | None = None
        self.phase = NEW
        self.hops = self.message_id = 0
        self.epoch = 0
        """Epoch of the shard when the run started."""
        self.producer: Producer | None = None
        """Makes the items, if this is a stream that runs here."""
        self.peer: Recipient | None = None
        """The peer that it was sent to."""
        self.request_id = 0
        """Its number on the link to that peer."""
        self.waits_for_room = False
        """Queue it beyond the mailbox's capacity instead of failing it."""
        self.is_nested = False
        """It runs beside another run of its cell: a reentrant one, or an interleaved one that waits."""
        self.credit = 0
        """Stream: how many items may be sent before the consumer grants more."""
        self.abandoned_for: ActorhubError | None = None
        """The error of a run that is being cancelled, or of a sent call that was called back."""
        self.shard_id: ShardId | None = None
        self.cell: Cell | None = None
        """Where it runs or queues."""
        self.task: asyncio.Task[Any] | None = None
        """The task that carries the run, while its handler is suspended."""
        self.delivery: Durable | None = None
        """How the message is to be stored, for a durable handler; `None`: the call is volatile."""
        self.observed: Any = None
        """What the observers of calls and runs remember of it."""

    @property
    def address(self) -> str:
        """`type/id` of the target."""
        return f"{self.spec.entity_type}/{self.entity_id}"

    @property
    def what(self) -> str:
        """`type.handler`, for error messages."""
        return f"{self.spec.entity_type}.{self.spec.name}"

    @property
    def entity(self) -> tuple[str, str]:
        """Type and id of the target."""
        return self.spec.entity_type, self.entity_id

    @property
    def chains(self) -> Iterable[Sequence[str]]:
        """The chains of the calls that wait for its reply."""
        return (self.chain,)

    @property
    def was_sent_before(self) -> bool:
        """Whether it is a durable call that was sent again after its receiver was lost, so that it may have run."""
        return self.delivery is not None and self.delivery.is_repeated

    def own_error(self, error: ActorhubError) -> ActorhubError:
        """Return the error as this message's. Of one that was sent before nobody can say that it has not run."""
        if self.was_sent_before and not error.possibly_executed:
            error = copy.copy(error)  # the same error may fail other messages, of which that is not true
            error.possibly_executed = True
        return error

    def on_not_started(self) -> bool:
        """It could not start where it was. Return whether it has taken care of itself; if not, it is routed again."""
        return False

    def track_in(self, under_way: "set[Message]") -> None:
        """Be in `under_way` until the receiver knows of this tell."""

    def try_resume(self) -> bool:
        """Prepare a stream whose producer was lost to go on at another one; `False` if it cannot, and so fails."""
        return False

    def on_accepted(self) -> None:
        """A tell is in a mailbox: its sender goes on, and is not told of later errors."""

    def on_completed(self, body: bytes) -> None:
        """Take the encoded result; for a stream, the end."""
        raise AssertionError

    def on_returned(self, body: bytes, copy: Any) -> None:
        """Take the encoded result of a run in this process; `copy` is what it is decoded to, and nobody else has it."""
        self.on_completed(body)

    def on_failed(self, error: ActorhubError) -> None:
        """Take the error that the call ended with."""
        raise AssertionError

    def complete_waiting(self, body: bytes) -> None:
        """Complete a call that is `SENT`; one whose caller went away is left alone."""
        if self.phase == SENT:
            self.phase = DONE
            self.on_completed(body)

    def fail_waiting(self, error: ActorhubError) -> None:
        """Fail a call that is `SENT`; one whose caller went away is left alone."""
        if self.phase == SENT:
            self.phase = DONE
            self.on_failed(error)

    def on_items(self, bodies: Sequence[bytes]) -> None:
        """Take items of a stream, encoded."""
        raise AssertionError


class AwaitedMessage(Message):
    """A message whose outcome is awaited in `future`."""

    __slots__ = ("future",)

    def __init__(self, spec: HandlerSpec, entity_id: str, kind: int = ASK) -> None:
        super().__init__(spec, entity_id, kind)
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_completed(self, body: bytes) -> None:
        """Take the encoded result."""
        if not self.future.done():
            self.future.set_result(body)

    def on_failed(self, error: ActorhubError) -> None:
        """Take the error."""
        if not self.future.done():
            self.future.set_exception(error)


ACTIVATING: Final = 0
"""The instance is being made. Messages queue."""
ACTIVE: Final = 1
CLOSING: Final = 2
"""It ends after what runs. Messages queue for the next activation, here or elsewhere; those that running handlers wait
for start nevertheless while its shard drains."""
PASSIVATING: Final = 3
"""Nothing runs any longer but its last hooks. Messages queue for the next activation."""
DEAD: Final = 4
"""Over. Where it was forced out, runs may still be alive: none of them may be committed."""

EXCLUSIVE: Final = -1
_UNLIMITED: Final = 1 << 30


class StateRecord:
    """The committed state of an entity."""

    __slots__ = ("carried", "data", "version")

    def __init__(self, version: int, data: bytes) -> None:
        self.version = version
        self.data = data
        self.carried: Carried | None = None
        """What is stored besides, and unknown to the class of this release."""

    def stored_form(self, data: bytes) -> bytes:
        """Return what a commit writes of a changed state that encodes to `data`."""
        return data if self.carried is None else self.carried.prepared(data)


class Returning:
    """An interleaved run, or the clean-up of a stream, that waits to get a turn back. It comes before the mailbox."""

    __slots__ = ("future", "spec")

    def __init__(self, spec: HandlerSpec) -> None:
        self.spec = spec
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """`True`: it has its turn. `False`: it need not wait any longer."""


class Cell:
    """One resident entity: its instance, its mailbox, and what runs. An idle one has no task, queue or timer."""

    __slots__ = ("durable_count", "entity_id", "has_backlog", "hosted_type", "instance", "kept", "last_used", "load",
                 "nested", "phase", "queue", "record", "returning", "shard", "streams")  # fmt: skip

    def __init__(self, hosted_type: "HostedType", shard: "HostedShard", entity_id: str) -> None:
        self.hosted_type = hosted_type
        self.shard = shard
        self.entity_id = entity_id
        self.instance: Any = None
        self.phase = ACTIVATING
        self.load = 0
        """`EXCLUSIVE`, or the number of shared runs."""
        self.nested = 0
        """Runs that `load` does not count: of reentrant handlers, and interleaved ones that wait."""
        self.queue: deque[Message] | None = None
        """Messages that wait for their turn; exists only while there are any."""
        self.record: StateRecord | None = None
        """The committed state, if the entity has one."""
        self.last_used = 0.0
        self.kept = False
        """It is not passivated when idle (`keep_alive`)."""
        self.streams: set[Producer] | None = None
        """Streams that run, with those whose clean-up does."""
        self.has_backlog = shard.has_backlog
        """Durable messages of it may wait in the store. New ones must wait behind them, in the store, too."""
        self.durable_count = 0
        """How many durable messages are in its mailbox, start or run."""
        self.returning: deque[Returning] | None = None
        """Who waits to get a turn back; exists only while there is somebody."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, queues or streams."""
        return self.load == 0 and self.nested == 0 and self.queue is None and not self.streams

    @property
    def can_commit(self) -> bool:
        """Whether this process can prove its ownership right now, and the activation is not over."""
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

    def admit(self, spec: HandlerSpec, *, is_returning: bool = False) -> bool:
        """Give a run of `spec` a turn if one is free, and return whether it was; else change nothing.

        `Scheduler.end_turn` takes the turn back.
        """
        load = self.load
        if load == 0:
            self.load = 1 if spec.readonly or self.hosted_type.spec.concurrency > 1 else EXCLUSIVE
            return True
        # A shared run beside others must not start while somebody waits to get a turn back, perhaps the whole entity's:
        # there might always be one more of them, and the turn would never come.
        if load > 0 and (is_returning or self.returning is None):
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
        """Take the head of the queue if a turn is free for it, and give it that turn; the cell must not be over."""
        queue = self.queue
        if queue is None or not self.admit(queue[0].spec):
            return None
        message = queue.popleft()
        if not queue:
            self.queue = None
        return message

    def take_queue(self) -> deque[Message]:
        """Remove and return every message that has not started."""
        queue, self.queue = self.queue, None
        return queue if queue is not None else deque()


class HostedType:
    """An entity type that this process can host, with its resident cells in the order in which they are visited."""

    __slots__ = ("cells", "entity", "factory", "is_simple", "newcomers", "spec")

    def __init__(self, spec: EntitySpec, entity: type[Any], factory: Callable[[], Any]) -> None:
        self.spec = spec
        self.entity = entity
        """The user's class."""
        self.factory = factory
        """Makes its instances; may be the class itself."""
        self.cells: OrderedDict[str, Cell] = OrderedDict()
        self.is_simple = spec.state is None and spec.on_activate is None and spec.singleton_id is None
        """To activate one takes a single synchronous call of the factory."""
        self.newcomers = 0
        """Messages that wait for a place in memory for their entities."""


class HostedShard:
    """A shard that this process owns."""

    __slots__ = ("admits_all", "cells", "drain_until", "draining", "draining_since", "emptied", "epoch", "has_backlog",
                 "held", "id", "is_ending", "is_late", "is_lost", "lease", "told")  # fmt: skip

    def __init__(self, shard: ShardId, epoch: int, lease: Lease) -> None:
        self.id = shard
        self.epoch = epoch
        self.lease = lease
        """The runner's: it ends for all shards at once."""
        self.cells: set[Cell] = set()
        self.draining = False
        self.draining_since = 0.0
        """Monotonic seconds."""
        self.drain_until = FOREVER
        """Monotonic seconds at which its drain cuts off what still runs."""
        self.is_lost = False
        """It was taken from this process: what runs in it is cancelled, and can commit nothing."""
        self.is_late = False
        """Half of the grace time of its drain is over."""
        self.is_ending = False
        """What still runs is about to be cut off: nothing more comes in."""
        self.admits_all = False
        """While it drains: every call of a running handler comes in, not only what the drain itself waits for."""
        self.held: dict[tuple[str, str], deque[Message]] = {}
        """By entity that is not resident, messages for the next owner: they came, or were left over, in its drain."""
        self.emptied: asyncio.Future[None] | None = None
        self.has_backlog = False
        """Durable messages of entities that are not resident may wait in the store. New ones wait behind them."""
        self.told: set[Message] = set()
        """Committed durable tells of its entities that may not have reached their receivers yet."""

    @property
    def queued(self) -> int:
        """How many messages wait in its mailboxes."""
        waiting = sum(len(messages) for messages in self.held.values())
        return waiting + sum(len(cell.queue) for cell in self.cells if cell.queue is not None)

    def hold(self, message: Message) -> None:
        """Keep a message for the next owner, behind those of its entity that are kept already."""
        self.held.setdefault(message.entity, deque()).append(message)
