"""What the engine tells its observers: runs and calls, as they begin and end.

There are none unless metrics or traces are wanted, so each place checks one attribute and goes on.
"""

from contextvars import Context
from typing import Any, Protocol

from actorhub.core.errors import ActorhubError
from actorhub.engine.model.records import Message


class Observer(Protocol):
    """Told of handler runs. Its methods must neither block nor raise; `Message.observed` is theirs to use."""

    def started(self, message: Message, context: Context) -> None:
        """A run of `message` is about to take its first step in `context`, which is the run's own."""
        ...

    def ended(self, message: Message, error: ActorhubError | None) -> None:
        """The run is over, and its reply is on its way: `error`, or a value if that is `None`.

        Called once for each `started`; for a stream after its last step.
        """
        ...

    def refused(self, message: Message, error: ActorhubError) -> None:
        """A message that reached its entity's runner failed without a run, for example with `MailboxFull`."""
        ...


class CallTracing(Protocol):
    """Told of the calls of this process. Its methods must neither block nor raise."""

    def call_started(self, message: Message) -> Any:
        """A call is about to leave. May add to its headers; returns what `call_ended` needs, or `None`."""
        ...

    def call_ended(self, call: Any, error: BaseException | None) -> None:
        """The call ended: with `error`, which may be its caller's cancellation; or well; or nobody waits for it."""
        ...
