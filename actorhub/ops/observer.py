"""How long runs take and how they end, counted by handler in plain lists; and their spans, if traces are wanted."""

from bisect import bisect_left
from collections.abc import Collection
from contextvars import Context
from typing import Any, Final, NamedTuple

from opentelemetry.trace import Span

from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.records import Message
from actorhub.engine.model.spec import HandlerSpec
from actorhub.ops.tracing import Tracing, without_trace

BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip
"""Upper bounds of the latency buckets, in seconds; beyond them there is one more, without a bound."""
OTHER: Final = "other"
"""The label of errors that do not belong to this library's classes."""

_OURS: Final = {
    cls: cls.__name__ for cls in ActorhubError.__subclasses__() if cls.__module__ == ActorhubError.__module__
}
"""The public classes directly below the root: what is derived from one of them counts as that one."""


class Tally:
    """The runs of one handler so far."""

    __slots__ = ("counts", "errors", "seconds", "spec")

    def __init__(self, spec: HandlerSpec) -> None:
        self.spec = spec
        self.counts = [0] * (len(BOUNDS) + 1)
        """Runs by bucket."""
        self.seconds = 0.0
        """All runs together."""
        self.errors: dict[str, int] = {}
        """Messages that failed, with a run or without, by class of the error."""

    @property
    def runs(self) -> int:
        """How many runs ended."""
        return sum(self.counts)

    def failed(self, error: ActorhubError) -> None:
        """Count an error."""
        name = error_label(error)
        self.errors[name] = self.errors.get(name, 0) + 1


class _Traced(NamedTuple):
    began: float
    span: Span


class RunObserver:
    """Takes the time of every run, at about half a microsecond for one that has no span.

    A run's time is from its first step to its reply, including the commit but not the wait in the mailbox.
    """

    def __init__(self, clock: Clock, tracing: Tracing | None, base: Context) -> None:
        """Prepare.

        Args:
            clock: Takes the time.
            tracing: Makes the spans; `None`: there are none.
            base: The context that runs start from.
        """
        self._monotonic = clock.monotonic
        self.tracing = tracing
        self._tallies: dict[int, Tally] = {}
        """By identity of the handler's spec, whose own hash goes through all of its fields."""
        self._by_name: dict[tuple[str, str], Tally] = {}
        """By entity type and handler: a handler that is not durable has two specs if it ran a stored message, too."""
        if tracing is not None:
            without_trace(base)

    @property
    def tallies(self) -> Collection[Tally]:
        """One for each handler that ran."""
        return self._by_name.values()

    def started(self, message: Message, context: Context) -> None:
        """Note when the run starts, and begin its span."""
        now = self._monotonic()
        if self.tracing is not None and message.observed is not False:
            span = self.tracing.run_started(message, context, now)
            if span is not None:
                message.observed = _Traced(now, span)
                return
        message.observed = now

    def ended(self, message: Message, error: ActorhubError | None) -> None:
        """Count the run, and end its span."""
        seen: Any = message.observed
        if seen.__class__ is _Traced:
            assert self.tracing is not None
            self.tracing.run_ended(seen.span, error)
            seen = seen.began
        seconds = self._monotonic() - seen
        spec = message.spec
        tally = self._tallies.get(id(spec))
        if tally is None:
            tally = self._new_tally(spec)
        tally.counts[bisect_left(BOUNDS, seconds)] += 1
        tally.seconds += seconds
        if error is not None:
            tally.failed(error)

    def refused(self, message: Message, error: ActorhubError) -> None:
        """Count the error."""
        spec = message.spec
        tally = self._tallies.get(id(spec))
        if tally is None:
            tally = self._new_tally(spec)
        tally.failed(error)

    def _new_tally(self, spec: HandlerSpec) -> Tally:
        name = spec.entity_type, spec.name
        tally = self._tallies[id(spec)] = self._by_name.setdefault(name, Tally(spec))
        return tally


def error_label(error: ActorhubError) -> str:
    """Return the name of the public class that `error` belongs to: one of about twenty, whatever users derive."""
    for cls in type(error).__mro__:
        if (name := _OURS.get(cls)) is not None:
            return name
    return OTHER
