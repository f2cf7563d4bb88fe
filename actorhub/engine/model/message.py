"""A call on its way through the engine, from the caller's `await` to the reply."""

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from actorhub.core.envelope import ASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actorhub.core.address import ShardId
    from actorhub.core.envelope import Durable
    from actorhub.core.errors import ActorhubError
    from actorhub.engine.model.cell import Cell
    from actorhub.engine.model.spec import HandlerSpec
    from actorhub.engine.routing.peers import Peer
    from actorhub.engine.runs.checkpoints import Progress
    from actorhub.engine.runs.interleaving import Interleaving
    from actorhub.engine.runs.streams import Producer
    from actorhub.storage.message_ports import RunTransaction

NEW: Final = 0
"""Not handed to any mailbox yet: failing it promises that no handler ran."""
PARKED: Final = 1
"""Waits in the router for an owner."""
SENT: Final = 2
"""Handed to a peer: the outcome is the peer's to tell."""
QUEUED: Final = 3
"""In a mailbox of this process."""
RUNNING: Final = 4
COMMITTING: Final = 5
"""The handler is done; its state is being committed and cannot be called back."""
DONE: Final = 6

FOREVER: Final = 1e15
"""A deadline that never comes, in seconds; finite, so that it needs no special case."""


class Message:
    """One call of one handler. Subclasses say where the reply goes.

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
        "durable",
        "entity_id",
        "epoch",
        "headers",
        "hops",
        "is_nested",
        "kind",
        "message_id",
        "observed",
        "outbox",
        "peer",
        "phase",
        "producer",
        "request_id",
        "shard",
        "spec",
        "task",
        "transaction",
        "waits_for_room",
    )

    skip: int = 0
    """Durable stream: how many items, from the first, the consumer has already. A slot of the classes that need it."""
    interleaving: "Interleaving | None" = None
    """The turn of an interleaved run. A slot of the classes that need it, like the next one."""
    progress: "Progress | None" = None
    """The checkpoints of the run, once it asked for some."""

    def __init__(self, spec: "HandlerSpec", entity_id: str, kind: int = ASK) -> None:  # noqa: PLR0915 - a line per slot
        self.spec = spec
        self.entity_id = entity_id
        self.kind = kind
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
        """What makes the items of a stream that runs in this process."""
        self.peer: Peer | None = None
        """Whom it was sent to."""
        self.request_id = 0
        """Its number on that peer's link."""
        self.outbox: list[Message] | None = None
        """What the handler told, to be sent once its run is committed."""
        self.waits_for_room = False
        """Queue beyond the mailbox's capacity instead of failing."""
        self.is_nested = False
        """Runs beside another run of its cell (`reentrant`)."""
        self.credit = 0
        """Stream: how many items the consumer takes at first."""
        self.abandoned_for: ActorhubError | None = None
        """Why a run is being cancelled, or a sent call was called back."""
        self.shard: ShardId | None = None
        self.cell: Cell | None = None
        """Where it runs or queues."""
        self.task: asyncio.Task[Any] | None = None
        """The task that a suspended run belongs to."""
        self.durable: Durable | None = None
        """What a caller says of a durable message, until it is stored."""
        self.transaction: RunTransaction | None = None
        """The transaction that the handler opened for its own SQL."""
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
        return self.durable is not None and self.durable.is_repeated

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

    def failed(self, error: "ActorhubError") -> None:
        """Take the error that the call ended with."""
        raise AssertionError

    def complete_waiting(self, body: bytes) -> None:
        """Complete a call that is in somebody else's hands; one whose caller went away is left alone."""
        if self.phase == SENT:
            self.phase = DONE
            self.completed(body)

    def fail_waiting(self, error: "ActorhubError") -> None:
        """Fail a call that is in somebody else's hands; one whose caller went away is left alone."""
        if self.phase == SENT:
            self.phase = DONE
            self.failed(error)

    def chunk(self, bodies: "Sequence[bytes]") -> None:
        """Take items of a stream, encoded."""
        raise AssertionError


class AwaitedMessage(Message):
    """A message whose outcome is a future's."""

    __slots__ = ("future",)

    def __init__(self, spec: "HandlerSpec", entity_id: str, kind: int = ASK) -> None:
        super().__init__(spec, entity_id, kind)
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def completed(self, body: bytes) -> None:
        """Take the encoded result."""
        if not self.future.done():
            self.future.set_result(body)

    def failed(self, error: "ActorhubError") -> None:
        """Take the error."""
        if not self.future.done():
            self.future.set_exception(error)


running: ContextVar[Message | None] = ContextVar("actorhub_running", default=None)
"""The message whose handler runs in this context; `None` outside of handlers."""
