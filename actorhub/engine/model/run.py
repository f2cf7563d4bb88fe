"""A run of user code, from its first step to its commit."""

import asyncio
from contextvars import ContextVar

import msgspec

from actorhub.engine.model.progress import Progress
from actorhub.engine.model.records import RUNNING, Cell, InterleavedTurn, Message, RunKind
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import RunTransaction


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
    saved: "asyncio.Future[None] | None" = None
    """Is done once the commit of a part that is under way is answered; `None`: none is."""

    @property
    def kind(self) -> RunKind:
        """What runs."""
        return self.message.run_kind

    @property
    def is_running(self) -> bool:
        """Whether user code still runs: neither over nor being committed."""
        return not self.is_over and self.message.phase == RUNNING

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
