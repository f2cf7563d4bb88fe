"""Spans of calls and runs, with OpenTelemetry's own SDK: who belongs to whose trace, and what the spans say."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from actorhub import Cluster, Entity, EntityError, Hub, Singleton, cron, current, handler
from actorhub.cluster import part_of
from actorhub.core.clock import SystemClock
from actorhub.ops.tracing import NEW_TRACES_PER_SECOND, Tracing
from actorhub.testing import MemoryCluster


class Closed(EntityError):
    until: str


class Desk(Entity, name="desk"):
    """Passes on what it gets."""

    async def where(self) -> str | None:
        return current().trace

    async def ask_next(self) -> str | None:
        return await current().client(Desk)("next").where()

    @handler(durable=True)
    async def note(self) -> int:
        return 1

    @handler(durable=True)
    async def pass_on(self) -> int:
        return await current().tell(current().client(Desk)("next").note())

    async def refuse(self) -> None:
        raise Closed(until="Monday")

    async def trip(self) -> None:
        raise KeyError("tripped")

    async def count(self, last: int) -> AsyncIterator[int]:
        for number in range(last):
            yield number


class Clerk(Singleton, name="clerk"):
    """Answers."""

    async def hours(self) -> int:
        return 8


class Clock(Singleton, name="clock"):
    """Asks every second."""

    @cron("* * * * * *")
    async def tick(self, at: datetime) -> None:
        await current().client(Desk)("ada").where()


hub = Hub()
hub.register(Desk)
hub.register(Clerk)

ticking = Hub()
ticking.register(Desk)
ticking.register(Clock)


def _configure(monkeypatch: pytest.MonkeyPatch, provider: TracerProvider) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans end up, of a provider that is configured for this test alone."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    _configure(monkeypatch, provider)
    return exporter


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    """An empty cluster; what starts in it looks at the provider then."""
    async with MemoryCluster(hub) as made:
        yield made


@pytest.fixture(params=["here", "there"])
async def cluster(request: pytest.FixtureRequest, spans: InMemorySpanExporter, memory: MemoryCluster) -> Cluster:
    """The caller's side, with tracing on: in the entities' own process, and in another one."""
    runner = await memory.start_runner()
    return runner if request.param == "here" else await memory.client()


async def _finished(exporter: InMemorySpanExporter, name: str, count: int = 1) -> Sequence[ReadableSpan]:
    """Wait for the spans of that name."""
    async with asyncio.timeout(5):
        while len(found := [span for span in exporter.get_finished_spans() if span.name == name]) < count:
            await asyncio.sleep(0.01)
    return found


async def _one(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = await _finished(exporter, name)
    return span


def _is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    assert child.context is not None
    assert parent.context is not None
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )


async def test_an_ask_is_a_call_and_a_run_of_one_trace(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """The run is the call's child; its attributes say what ran where."""
    said = await cluster.client(Desk)("ada").where()
    call, run = await _one(spans, "desk.where"), await _one(spans, "entity.desk.where")
    assert (call.kind, run.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert call.parent is None
    assert _is_child(run, call)
    assert call.context is not None
    assert said == f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-{int(call.context.trace_flags):02x}"
    assert dict(run.attributes or {}) == {
        "actorhub.entity.type": "desk",
        "actorhub.entity.id": "ada",
        "actorhub.handler": "where",
        "actorhub.message_id": 0,
        "actorhub.shard": str(cluster.shard_of(Desk, "ada")),
        "actorhub.runner": "127.0.0.1:1",
        "actorhub.leader": False,
        "actorhub.attempt": 1,
    }


async def test_a_call_belongs_to_the_trace_that_it_is_made_in(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """A span of the caller's own is the call's parent, and a handler's call is a child of its run."""
    with trace.get_tracer("test").start_as_current_span("mine"):
        await cluster.client(Desk)("ada").ask_next()
    mine = await _one(spans, "mine")
    asked, asking = await _one(spans, "desk.ask_next"), await _one(spans, "entity.desk.ask_next")
    nested, run = await _one(spans, "desk.where"), await _one(spans, "entity.desk.where")
    assert _is_child(asked, mine)
    assert _is_child(asking, asked)
    assert _is_child(nested, asking)
    assert _is_child(run, nested)


async def test_a_durable_tell_runs_in_the_trace_of_its_sender(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """So does what its handler tells."""
    message_id = await cluster.tell(cluster.client(Desk)("ada").pass_on())
    call, run = await _one(spans, "desk.pass_on"), await _one(spans, "entity.desk.pass_on")
    told, last = await _one(spans, "desk.note"), await _one(spans, "entity.desk.note")
    assert _is_child(run, call)
    assert _is_child(told, run)
    assert _is_child(last, told)
    assert (run.attributes or {})["actorhub.message_id"] == message_id


async def test_the_trace_context_is_stored_with_the_message(memory: MemoryCluster, spans: InMemorySpanExporter) -> None:
    """A message whose runner was lost before it was due runs elsewhere, in the trace of its sender."""
    first = await memory.start_runner()
    message_id = await first.tell(first.client(Desk)("ada").note(), delay=timedelta(seconds=0.2))
    call = await _one(spans, "desk.note")
    row = memory.store.messages.find(message_id)
    assert row is not None
    assert call.context is not None
    assert f"{call.context.trace_id:032x}" in (row.headers or {})["traceparent"]
    await memory.kill(first)
    await memory.start_runner()
    run = await _one(spans, "entity.desk.note")
    assert _is_child(run, call)
    assert (run.attributes or {})["actorhub.runner"] == "127.0.0.1:2"


async def test_errors_are_on_both_spans(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """A domain error by its class, a crash by the exception that the handler raised, with its traceback."""
    desk = cluster.client(Desk)("ada")
    with pytest.raises(Closed):
        await desk.refuse()
    with pytest.raises(Exception, match="tripped"):
        await desk.trip()
    for name, error in (("refuse", "Closed"), ("trip", "KeyError")):
        for span in (await _one(spans, f"desk.{name}"), await _one(spans, f"entity.desk.{name}")):
            assert span.status.status_code == StatusCode.ERROR
            assert (span.attributes or {})["error.type"] == error
            (event,) = span.events
            assert (event.attributes or {})["exception.type"] == error
    (event,) = (await _one(spans, "entity.desk.trip")).events
    assert 'raise KeyError("tripped")' in str((event.attributes or {})["exception.stacktrace"])


async def test_a_stream_is_one_call_and_one_run(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """Both last until the stream has ended."""
    assert [number async for number in cluster.client(Desk)("ada").count(3)] == [0, 1, 2]
    assert _is_child(await _one(spans, "entity.desk.count"), await _one(spans, "desk.count"))


async def test_the_runs_of_a_singleton_are_named_after_it(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """Their attribute says that the runner leads it."""
    await cluster.singleton(Clerk).hours()
    run = await _one(spans, "singleton.clerk")
    assert (run.attributes or {})["actorhub.leader"] is True
    assert (run.attributes or {})["actorhub.handler"] == "hours"


async def test_a_run_of_a_schedule_is_named_after_it(memory: MemoryCluster, spans: InMemorySpanExporter) -> None:
    """It begins a trace, to which what it calls belongs."""
    await memory.start_runner(hub=ticking)
    call = (await _finished(spans, "desk.where"))[0]
    runs = await _finished(spans, "cron.tick")
    assert any(_is_child(call, run) for run in runs)
    assert {(run.attributes or {})["actorhub.leader"] for run in runs} == {True}


async def test_a_cancelled_call_ends_its_span(cluster: Cluster, spans: InMemorySpanExporter) -> None:
    """It says that it was cancelled."""
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_ask(cluster))
        await asyncio.sleep(0)
        asking.cancel()
    assert (await _one(spans, "desk.ask_next")).status.description == "CancelledError"


async def _ask(cluster: Cluster) -> None:
    await cluster.client(Desk)("ada").ask_next()


async def test_the_trace_in_which_the_hub_was_opened_has_no_runs(
    memory: MemoryCluster, spans: InMemorySpanExporter
) -> None:
    """A handler belongs to its caller's trace, or to none."""
    with trace.get_tracer("test").start_as_current_span("opening"):
        runner = await memory.start_runner()
    await runner.client(Desk)("ada").ask_next()
    opening, call = await _one(spans, "opening"), await _one(spans, "desk.ask_next")
    assert opening.context is not None
    assert call.context is not None
    assert call.context.trace_id != opening.context.trace_id
    assert _is_child(await _one(spans, "desk.where"), await _one(spans, "entity.desk.ask_next"))


async def test_without_a_provider_there_are_no_spans(memory: MemoryCluster) -> None:
    """No header is added, and nobody is told of calls and runs."""
    runner = await memory.start_runner()
    assert await runner.client(Desk)("ada").where() is None
    assert part_of(runner).node.tracing is None


async def test_what_the_sampler_leaves_out_stays_out(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is not sampled says so in its header, and neither its run nor what that calls is recorded."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    _configure(monkeypatch, provider)
    runner = await memory.start_runner()
    header = await runner.client(Desk)("ada").ask_next()
    assert header is not None
    assert int(header[-2:], 16) & 1 == 0
    assert exporter.get_finished_spans() == ()


async def test_a_failing_span_processor_harms_no_call(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged once, and the call goes on untraced."""

    class Broken(SpanProcessor):
        def on_start(self, span: object, parent_context: object = None) -> None:
            raise RuntimeError("broken")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    _configure(monkeypatch, provider)
    runner = await memory.start_runner()
    assert await runner.client(Desk)("ada").where() is None
    tracing = part_of(runner).node.tracing
    assert isinstance(tracing, Tracing)
    assert tracing.failures == 2


async def test_new_traces_are_bounded_and_calls_inside_of_one_are_not(
    memory: MemoryCluster, spans: InMemorySpanExporter
) -> None:
    """Beyond the bound calls outside of any trace go untraced and are counted; those inside are traced nevertheless."""
    runner = await memory.start_runner()
    desk = runner.client(Desk)("ada")
    for _ in range(3 * NEW_TRACES_PER_SECOND):
        await desk.where()
    tracing = part_of(runner).node.tracing
    assert isinstance(tracing, Tracing)
    calls = [span for span in spans.get_finished_spans() if span.name == "desk.where"]
    assert len(calls) + tracing.not_begun == 3 * NEW_TRACES_PER_SECOND
    assert tracing.not_begun > 0
    spans.clear()
    with trace.get_tracer("test").start_as_current_span("mine"):
        for _ in range(10):
            await desk.where()
    mine = await _one(spans, "mine")
    assert all(_is_child(call, mine) for call in await _finished(spans, "desk.where", 10))


def test_each_second_begins_its_number_of_traces() -> None:
    """A new second starts a new count, whatever the last one left."""
    tracing = Tracing(TracerProvider(shutdown_on_exit=False), SystemClock(), version="1", runner="")
    begun = sum(tracing.try_begin(100.0) for _ in range(NEW_TRACES_PER_SECOND + 5))
    assert (begun, tracing.not_begun) == (NEW_TRACES_PER_SECOND, 5)
    assert not tracing.try_begin(100.9)
    assert tracing.try_begin(101.0)
