"""Traces: spans of calls and runs, joined by the W3C `traceparent` header that travels, and is stored, with messages.

What belongs to a trace is always traced. For calls outside any trace, new ones are begun, but only so many per second:
beyond that no exporter keeps up, and the traces that it gets would have holes.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Final, TypeVar

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from actorhub.core.clock import Clock
from actorhub.core.errors import HandlerFailed
from actorhub.core.logger import get_logger
from actorhub.core.texts import text_of
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import Message
from actorhub.engine.model.spec import HandlerSpec

T = TypeVar("T")

_log: Final = get_logger("actorhub.tracing")

NEW_TRACES_PER_SECOND: Final = 1000
"""New traces that one process begins; calls inside a trace do not count."""
_TRACEPARENT: Final = "traceparent"
_CANCELLED: Final = "CancelledError"


def tracer_provider() -> TracerProvider | None:
    """Return the provider that this program configured; `None`: there is none, so nothing is traced."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider) else provider


class Tracing:
    """Makes the spans of one process. If a sampler or span processor fails, that is logged, and the call continues."""

    def __init__(self, provider: TracerProvider, clock: Clock, *, version: str, runner: str) -> None:
        """Prepare.

        Args:
            provider: Where the spans go.
            clock: For the limit on new traces.
            version: Of this library.
            runner: This process's address; empty for a client.
        """
        self._tracer = provider.get_tracer("actorhub", version)
        self._monotonic = clock.monotonic
        self._runner = runner
        self._propagator = TraceContextTextMapPropagator()
        self._nothing = otel.Context()
        self._window_ends = 0.0
        self._left = 0
        self.not_begun = 0
        """Calls and runs outside any trace for which none was begun, because of the limit."""
        self.failures = 0
        """Spans that could not be made or ended."""

    def call_started(self, message: Message) -> Span | None:
        """Begin the span of a call that is about to leave, and put its trace context into the headers."""
        headers = message.headers
        if headers is not None and _TRACEPARENT in headers:
            return None
        current = trace.get_current_span()
        if current is trace.INVALID_SPAN or not current.get_span_context().is_valid:
            if not self.try_begin(self._monotonic()):
                message.observed = False
                return None
        elif not current.get_span_context().trace_flags.sampled:
            message.headers = self._with_context(headers, otel.get_current())
            return None
        spec = message.spec
        span = self._started(f"{spec.entity_type}.{spec.name}", SpanKind.CLIENT, _called(message), otel.get_current())
        if span is not None:
            message.headers = self._with_context(headers, trace.set_span_in_context(span, self._nothing))
        return span

    def call_ended(self, call: Span, error: BaseException | None) -> None:
        """End a call's span."""
        self._ended(call, error)

    def run_started(self, message: Message, context: Context, now: float) -> Span | None:
        """Begin the span of a run inside `context`; it continues its caller's trace, if there is one."""
        parent = self._nothing
        if message.headers is not None and _TRACEPARENT in message.headers:
            parent = self._propagator.extract(message.headers, self._nothing)
        of_caller = trace.get_current_span(parent).get_span_context()
        if not of_caller.is_valid:
            if not self.try_begin(now):
                return None
        elif not of_caller.trace_flags.sampled:
            context.run(otel.attach, parent)
            return None
        span = self._started(span_name(message.spec), SpanKind.SERVER, self._run(message), parent)
        context.run(otel.attach, trace.set_span_in_context(span or NonRecordingSpan(of_caller), self._nothing))
        return span

    def run_ended(self, span: Span, error: BaseException | None) -> None:
        """End a run's span."""
        self._ended(span, error)

    def try_begin(self, now: float) -> bool:
        """Count a new trace, unless there have been enough in this second; return whether it may begin."""
        if self._left == 0 or now >= self._window_ends:
            if now < self._window_ends:
                self.not_begun += 1
                return False
            self._window_ends = now + 1.0
            self._left = NEW_TRACES_PER_SECOND
        self._left -= 1
        return True

    def _run(self, message: Message) -> Mapping[str, AttributeValue]:
        cell = message.cell
        return {
            **_called(message),
            "actorhub.shard": str(cell.shard.id) if cell is not None else "",
            "actorhub.runner": self._runner,
            "actorhub.leader": message.spec.singleton,
            "actorhub.attempt": message.attempts if isinstance(message, DurableMessage) else 1,
        }

    def _with_context(self, headers: Mapping[str, str] | None, context: otel.Context) -> dict[str, str]:
        carrier = dict(headers) if headers else {}
        self._propagator.inject(carrier, context)
        return carrier

    def _started(
        self, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue], parent: otel.Context
    ) -> Span | None:
        return self._guarded(lambda: self._tracer.start_span(name, parent, kind=kind, attributes=attributes))

    def _ended(self, span: Span, error: BaseException | None) -> None:
        if error is not None and span.is_recording():
            _note_error(span, error)
        self._guarded(span.end)

    def _guarded(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except Exception:  # noqa: BLE001 - user code: a sampler or span processor may raise anything
            self.failures += 1
            if self.failures == 1:
                _log.exception("a span could not be made or ended; further ones are only counted")
            return None


def span_name(spec: HandlerSpec) -> str:
    """Return the name of a handler's runs."""
    if spec.cron is not None:
        return f"cron.{spec.cron}"
    return f"singleton.{spec.entity_type}" if spec.singleton else f"entity.{spec.entity_type}.{spec.name}"


def without_trace(context: Context) -> None:
    """Keep what starts from `context` out of any trace, such as the one in which the hub was opened."""
    context.run(otel.attach, otel.Context())


def _called(message: Message) -> dict[str, AttributeValue]:
    return {
        "actorhub.entity.type": message.spec.entity_type,
        "actorhub.entity.id": message.entity_id,
        "actorhub.handler": message.spec.name,
        "actorhub.message_id": message.message_id,
    }


def _note_error(span: Span, error: BaseException) -> None:
    name, text, stack = type(error).__qualname__, text_of(error), ""
    if isinstance(error, HandlerFailed):
        name, text, stack = error.type, error.message, error.traceback
    event: dict[str, AttributeValue] = {"exception.type": name, "exception.message": text}
    if stack:
        event["exception.stacktrace"] = stack
    span.add_event("exception", event)
    span.set_attribute("error.type", name)
    span.set_status(Status(StatusCode.ERROR, _CANCELLED if isinstance(error, asyncio.CancelledError) else text))
