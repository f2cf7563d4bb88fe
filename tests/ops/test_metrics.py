"""The table of metrics, as Prometheus and OpenTelemetry get it: names, values, and labels that stay few."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from actorhub import ActorhubError, Cluster, Entity, EntityError, Hub, MailboxFull, Singleton, cron, handler
from actorhub.cluster import part_of
from actorhub.core.config import HostPort, Settings
from actorhub.engine.runner import Runner
from actorhub.ops.metrics import FAMILIES
from actorhub.ops.observer import BOUNDS
from actorhub.ops.prometheus import Exposition
from actorhub.ops.reading import read
from actorhub.testing import MemoryCluster
from tests.support.parts import host_of

CONTRACT = {
    "actorhub_entities",
    "actorhub_singletons",
    "actorhub_runners",
    "actorhub_runners_healthy",
    "actorhub_shards",
    "actorhub_message_latency_seconds",
    "actorhub_redeliveries_total",
    "actorhub_errors_total",
    "actorhub_mailbox_depth",
    "actorhub_takeover_duration_seconds",
    "actorhub_refused_commits_total",
    "actorhub_lock_age_seconds",
    "actorhub_queue_age_seconds",
    "actorhub_singleton_duration_seconds",
    "actorhub_singleton_executions_total",
    "actorhub_singleton_last_execution_timestamp_seconds",
    "actorhub_singleton_state_errors_total",
    "actorhub_loop_restarts_total",
    "actorhub_task_failures_total",
    "actorhub_dropped_tells_total",
    "actorhub_dead_letters_total",
}
"""What dashboards are built on."""


class Sold(EntityError):
    left: int


class Stalls(Entity, name="stalls", mailbox_capacity=2):
    """Sells nothing."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    async def look(self) -> int:
        return 1

    async def buy(self) -> None:
        raise Sold(left=0)

    async def trip(self) -> None:
        raise RuntimeError("tripped")

    async def wait(self) -> None:
        await self._opened.wait()

    @handler(durable=True)
    async def note(self) -> int:
        return 1


class Warden(Singleton, name="warden"):
    """Looks around every second."""

    @cron("* * * * * *")
    async def look(self, at: datetime) -> None: ...


hub = Hub()
hub.register(Stalls)

guarded = Hub()
guarded.register(Warden)


@pytest.fixture
async def runner() -> AsyncIterator[Cluster]:
    """A runner in memory that is observed, as one that serves HTTP is."""
    settings = Settings(shards_per_group=16, grace=timedelta(seconds=0.2), http=HostPort("127.0.0.1", 0))
    async with MemoryCluster(hub, settings=settings) as memory:
        yield await memory.start_runner()


def _exposition(cluster: Cluster) -> Exposition:
    part = part_of(cluster)
    assert isinstance(part, Runner)
    return Exposition(lambda: read(part))


def _values(cluster: Cluster) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of our own, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(_exposition(cluster).text().decode())
        for sample in family.samples
        if sample.name.startswith("actorhub_")
    }


def _labels(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


async def test_the_exposition_has_every_family_once(runner: Cluster) -> None:
    """Each name of the table is announced with type and help, those that dashboards count on among them."""
    text = _exposition(runner).text().decode()
    for family in FAMILIES:
        assert text.count(f"# TYPE {family.name} {family.kind}\n") == 1
        assert f"# HELP {family.name} {family.help}\n" in text
    assert {family.name for family in FAMILIES} >= CONTRACT
    assert "process_resident_memory_bytes" in text


async def test_gauges_say_what_is_here(runner: Cluster) -> None:
    """Shards, runners, entities, mailboxes and the age of the lock, as they are now."""
    stalls = runner.client(Stalls)
    for name in "abc":
        await stalls(name).look()
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(_ask(stalls("a").wait())) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        values = _values(runner)
        for call in calls:
            call.cancel()
    assert values["actorhub_entities", _labels(entity_type="stalls")] == 3
    assert values["actorhub_mailbox_depth", _labels(entity_type="stalls")] == 2
    assert values["actorhub_shards", _labels(state="owned")] == 16
    assert values["actorhub_runners", _labels()] == values["actorhub_runners_healthy", _labels()] == 1
    assert 0 <= values["actorhub_lock_age_seconds", _labels()] < 2.5
    assert values["actorhub_serving", _labels()] == 1


async def _ask(call: object) -> None:
    await call  # type: ignore[misc]


async def test_runs_are_counted_by_handler_and_time(runner: Cluster) -> None:
    """Each run is in one bucket and in the sum; a handler that waits counts with its time."""
    stalls = runner.client(Stalls)
    for _ in range(5):
        await stalls("a").look()
    values = _values(runner)
    of_look = _labels(entity_type="stalls", handler="look")
    assert values["actorhub_message_latency_seconds_count", of_look] == 5
    assert 0 < values["actorhub_message_latency_seconds_sum", of_look] < 1
    ends = [*map(str, BOUNDS), "+Inf"]
    counts = [values["actorhub_message_latency_seconds_bucket", of_look | {("le", end)}] for end in ends]
    assert counts == sorted(counts)
    assert counts[-1] == 5


async def test_errors_are_counted_by_their_public_class(runner: Cluster) -> None:
    """Domain errors, crashes and messages that found no room; what is derived counts as what it is derived from."""
    stalls = runner.client(Stalls)
    for call in (stalls("a").buy(), stalls("a").buy(), stalls("a").trip()):
        with pytest.raises(ActorhubError):
            await call
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(_ask(stalls("b").wait())) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(MailboxFull):
            await stalls("b").look()
        for task in waiting:
            task.cancel()
    values = _values(runner)

    def count(handler_name: str, error: str) -> float:
        return values["actorhub_errors_total", _labels(entity_type="stalls", handler=handler_name, error=error)]

    assert (count("buy", "EntityError"), count("trip", "HandlerFailed"), count("look", "MailboxFull")) == (2, 1, 1)


async def test_labels_stay_few_whatever_the_number_of_ids(runner: Cluster) -> None:
    """Ten thousand entities, and as many errors, make no more time series than one of each."""
    stalls = runner.client(Stalls)

    async def visit(name: str) -> None:
        await stalls(name).look()
        await stalls(name).note()
        with pytest.raises(Sold):
            await stalls(name).buy()

    await visit("first")
    few = _values(runner).keys()
    for start in range(0, 10_000, 500):
        async with asyncio.TaskGroup() as tasks:
            for number in range(start, start + 500):
                tasks.create_task(visit(f"customer-{number}"))
    many = _values(runner)
    assert many.keys() == few
    assert many["actorhub_entities", _labels(entity_type="stalls")] == 10_001
    assert "customer" not in _exposition(runner).text().decode()


async def test_a_message_that_waits_for_its_time_is_not_old(runner: Cluster) -> None:
    """The age of the queue is that of what is due; what is held up grows older."""
    stalls = runner.client(Stalls)
    await runner.tell(stalls("later").note(), delay=timedelta(seconds=30))
    assert _values(runner)["actorhub_queue_age_seconds", _labels()] == 0
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_ask(stalls("a").wait()))
        await asyncio.sleep(0)
        await runner.tell(stalls("a").note())
        async with asyncio.timeout(5):
            while not _values(runner)["actorhub_queue_age_seconds", _labels()] > 0.05:
                await asyncio.sleep(0.02)
        waiting.cancel()


async def test_a_led_singleton_and_its_schedules_are_counted() -> None:
    """Who leads, that it is alive, what it executed and when, by names alone."""
    async with MemoryCluster(guarded) as memory:
        cluster = await memory.start_runner()
        runs = ("actorhub_schedule_runs_total", _labels(singleton="warden", schedule="look"))
        async with asyncio.timeout(10):
            while _values(cluster).get(runs, 0) < 1:
                await asyncio.sleep(0.02)
        values = _values(cluster)
    of_warden = _labels(singleton="warden")
    assert values["actorhub_singletons", of_warden] == 1
    assert values["actorhub_singleton_stale", of_warden] == 0
    assert values["actorhub_singleton_executions_total", of_warden] >= 1
    assert values["actorhub_singleton_state_errors_total", of_warden] == 0
    assert values["actorhub_singleton_last_execution_timestamp_seconds", of_warden] > 1.7e9
    assert 0 <= values["actorhub_singleton_duration_seconds", of_warden] < 5
    assert values["actorhub_schedule_overdue", runs[1]] == 0


async def test_without_an_observer_nothing_is_timed() -> None:
    """A runner that serves no HTTP, in a program without OpenTelemetry, keeps no tallies, and still can be read."""
    async with MemoryCluster(hub) as memory:
        cluster = await memory.start_runner()
        await cluster.client(Stalls)("a").look()
        assert host_of(cluster).scheduler.observer is None
        values = _values(cluster)
        assert values["actorhub_runs_total", _labels()] == 1
        assert not any(name == "actorhub_message_latency_seconds_count" for name, _ in values)


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """A configured meter provider, for this test alone."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", provider)
    return reader


def _exported(reader: InMemoryMetricReader) -> dict[tuple[str, frozenset[tuple[str, object]]], float]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, frozenset((point.attributes or {}).items())): point.value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


@pytest.mark.parametrize("thread", ["the loop's thread", "another thread"])
async def test_open_telemetry_gets_the_same_figures(meters: InMemoryMetricReader, thread: str) -> None:
    """Every family is an instrument, read in the event loop whichever thread asks; a closed runner says nothing."""
    async with MemoryCluster(hub) as memory:
        cluster = await memory.start_runner()
        await cluster.client(Stalls)("a").look()
        values = _exported(meters) if thread.startswith("the") else await asyncio.to_thread(_exported, meters)
        assert values["actorhub_entities", _labels(entity_type="stalls")] == 1
        assert values["actorhub_runs", _labels()] == 1
        of_look = _labels(entity_type="stalls", handler="look")
        assert values["actorhub_message_latency_seconds_count", of_look] == 1
        assert values["actorhub_message_latency_seconds_bucket", of_look | {("le", "+Inf")}] == 1
    async with asyncio.timeout(5):
        while meters.get_metrics_data() is not None:
            await asyncio.sleep(0.05)
