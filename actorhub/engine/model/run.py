"""A run of user code, from its first step to its commit."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from typing import Any, Protocol

import msgspec

from actorhub.engine.model.asked import Asked, AskedMessage
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.records import RUNNING, Cell, InterleavedTurn, Message, RunKind
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import RunTransaction


class NestedChanges(Protocol):
    """What a run within another run's turn changed."""

    outer: "Run | None"
    """The run around it; `None`: several `readonly` ones, which commit nothing."""
    depth: int
    """How often its entity is in the chain of calls that led to it."""

    @property
    def has_changes(self) -> bool:
        """Whether the run has changed the state, and nobody else has."""
        ...

    def on_step_ended(self) -> None:
        """Note how the run leaves the state to others."""
        ...

    def take_step(self, left: bytes | None) -> None:
        """Note what a step of this run, or of one within it, has left."""
        ...

    def note_others(self, found: bytes | None) -> None:
        """Note what others have done before a step of this run, or of one within it."""
        ...

    def resume(self, context: Context, step: Callable[[], Any]) -> Any:
        """Take one step of the run."""
        ...

    def undo(self) -> bool:
        """Take back what the run changed; return `False` if that cannot be told from what others changed."""
        ...

    def join(self, run: "Run") -> None:
        """Make what the run told, and what it changed, the run's around it."""
        ...

    def end(self) -> None:
        """Let the run around it end."""
        ...


class Run(msgspec.Struct, eq=False):
    """One run of a handler: what it leaves behind, until that is committed. A message that runs again gets a new one.

    The message is the call, and goes through the process until it is answered; the run exists while user code runs, and
    is what `current()` shows.
    """

    message: Message
    cell: Cell
    is_over: bool = False
    """Its outcome is known. The message may have a later run by then."""
    is_frozen: bool = False
    """It was terminated: its handler takes no further step."""
    outbox: list[Message] | None = None
    """What the handler told, to be sent once that is committed."""
    transaction: RunTransaction | None = None
    """The transaction that the handler opened for its own SQL."""
    step_transactions: Sequence[RunTransaction] = ()
    """Those that its steps have opened and not handed over to their commits."""
    interleaving: InterleavedTurn | None = None
    """The turn of an interleaved run."""
    progress: Progress | None = None
    """The checkpoints of the run, once it asked for some."""
    saves: asyncio.Lock | None = None
    """Held while a part of the run is committed; exists once there was one."""
    parts: int = 0
    """Saves and nested runs that are under way: the run ends after them."""
    quiet: "asyncio.Future[None] | None" = None
    """Is done once there are none; exists while the end waits for that."""
    nesting: NestedChanges | None = None
    """What it changed, if it runs within another run's turn."""
    inner: Sequence[NestedChanges] = ()
    """Of the runs within its turn."""
    unnested: "asyncio.Future[None] | None" = None
    """Is done once there are none; exists while a save waits for that."""
    asked: Asked | None = None
    """The durable messages that it sent, once there is one."""

    @property
    def kind(self) -> RunKind:
        """What runs."""
        return self.message.run_kind

    @property
    def is_running(self) -> bool:
        """Whether user code still runs: neither over nor being committed."""
        return not self.is_over and self.message.phase == RUNNING

    def send_once(self, call: Message, payload: bytes, step: str = "") -> AskedMessage | None:
        """Return the account of a durable message that the run is about to send, so that it is sent once.

        `None` if the run is not repeated, or has sent too much. A singleton's `run` repeats its steps only: what it
        does outside of them it does again, often in a loop, and gets new replies.

        Args:
            call: The message.
            payload: Hash of its arguments.
            step: The step that sends it.
        """
        scope = _scope_of(self.message, step)
        if scope is None:
            return None
        asked = self.asked
        if asked is None or asked.scope != scope:
            asked = self.asked = Asked(scope, f"{self.what}({self.message.entity_id})")
        return asked.send(call.entity, call.spec.name, step=step, payload=payload)

    def end_part(self) -> None:
        """Count a save or a nested run as ended."""
        self.parts -= 1
        if self.parts == 0 and self.quiet is not None and not self.quiet.done():
            self.quiet.set_result(None)

    @property
    def spec(self) -> HandlerSpec:
        """The handler."""
        return self.message.spec

    @property
    def what(self) -> str:
        """`type.handler`, for error messages."""
        return self.message.what


def _scope_of(message: Message, step: str) -> tuple[str, ...] | None:
    """Return what stays the same in each run of the message, and belongs to no other; `None` if there is one run."""
    if isinstance(message, DurableMessage):
        return (str(message.message_id),)
    if step and message.run_kind is RunKind.MAIN_LOOP and message.progress is not None:
        return (*message.entity, str(message.progress.generation))
    return None


running: ContextVar[Run | None] = ContextVar("actorhub_running", default=None)
"""The run of the handler in this context; `None` outside of handlers."""
