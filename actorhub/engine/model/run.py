"""A run of user code, from its first step to its commit."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from typing import Any, Protocol

import msgspec

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

    def adopt(self, state: bytes | None) -> None:
        """Take what a run within this one left for its own."""
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
    outbox: list[Message] | None = None
    """What the handler told, to be sent once that is committed."""
    transaction: RunTransaction | None = None
    """The transaction that the handler opened for its own SQL."""
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

    @property
    def kind(self) -> RunKind:
        """What runs."""
        return self.message.run_kind

    @property
    def is_running(self) -> bool:
        """Whether user code still runs: neither over nor being committed."""
        return not self.is_over and self.message.phase == RUNNING

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


running: ContextVar[Run | None] = ContextVar("actorhub_running", default=None)
"""The run of the handler in this context; `None` outside of handlers."""
