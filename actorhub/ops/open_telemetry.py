"""The table of metrics as OpenTelemetry's instruments, if this program configured a meter provider."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import accumulate
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from actorhub.engine.runner import Runner
from actorhub.ops.metrics import FAMILIES, Family, Sample
from actorhub.ops.observer import BOUNDS
from actorhub.ops.reading import Reading, read

_FRESH: Final = 0.5
"""Seconds during which one reading serves all instruments."""
_PATIENCE: Final = 1.0
"""Seconds that the thread of a metric reader waits for the event loop."""
_API: Final = "opentelemetry.metrics"
"""Where the providers come from that mean that none was configured."""
_ENDS: Final = (*map(str, BOUNDS), "+Inf")

_Callback = Callable[[CallbackOptions], Iterable[Observation]]


def meter_provider() -> MeterProvider | None:
    """Return the provider that this program configured, if any."""
    provider = metrics.get_meter_provider()
    return None if type(provider).__module__.startswith(_API) else provider


def export_metrics(runner: Runner, provider: MeterProvider) -> None:
    """Register an instrument for each family, in a scope of this runner's own; they report until it is closed."""
    scope = {"actorhub.runner": runner.info.runner.address, "actorhub.incarnation": runner.info.runner.incarnation}
    meter = provider.get_meter("actorhub", runner.info.version, attributes=scope)
    reader = _Reader(runner)
    for family in FAMILIES:
        if family.kind == "histogram":
            _register_histogram(meter, family, reader)
        elif family.kind == "gauge":
            _ = meter.create_observable_gauge(family.name, [_values(family, reader)], description=family.help)
        else:
            name = family.name.removesuffix("_total")
            _ = meter.create_observable_counter(name, [_values(family, reader)], description=family.help)


class _Reader:
    """Reads the runner in the thread of its event loop, whichever thread asks.

    A metric reader has a thread of its own. The runner's records change between any two of its bytecodes, so they are
    read in the event loop, between two of its callbacks.
    """

    def __init__(self, runner: Runner) -> None:
        # Instruments cannot be taken back: they must not keep a closed runner alive.
        self._runner = weakref.ref(runner)
        self._thread = threading.get_ident()
        self._monotonic = runner.node.clock.monotonic
        self._last: Reading | None = None
        self._last_at = -_FRESH

    def __call__(self) -> Reading | None:
        """Return a reading of the last half second; `None`: the runner is gone, or its event loop is blocked."""
        if self._monotonic() - self._last_at >= _FRESH:
            runner = self._runner()
            self._last = None if runner is None or runner.node.closed else self._read(runner)
            self._last_at = self._monotonic()
        return self._last

    def _read(self, runner: Runner) -> Reading | None:
        if threading.get_ident() == self._thread:
            return read(runner)
        reading: Future[Reading] = Future()
        try:
            runner.node.loop.call_soon_threadsafe(_fill, reading, runner)
            return reading.result(_PATIENCE)
        except (RuntimeError, TimeoutError):
            return None


def _fill(reading: "Future[Reading]", runner: Runner) -> None:
    reading.set_result(read(runner))


def _values(family: Family, reader: _Reader) -> _Callback:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for sample in _samples(family, reader):
            yield Observation(sample.value, dict(zip(family.labels, sample.labels, strict=True)))

    return observe


def _register_histogram(meter: Meter, family: Family, reader: _Reader) -> None:
    """OpenTelemetry has no observable histogram: count, sum and buckets become counters, as in Prometheus."""

    def counts(_: CallbackOptions) -> Iterator[Observation]:
        for sample in _samples(family, reader):
            yield Observation(sum(sample.counts), dict(zip(family.labels, sample.labels, strict=True)))

    def buckets(_: CallbackOptions) -> Iterator[Observation]:
        for sample in _samples(family, reader):
            labels = dict(zip(family.labels, sample.labels, strict=True))
            for end, count in zip(_ENDS, accumulate(sample.counts), strict=True):
                yield Observation(count, {**labels, "le": end})

    _ = meter.create_observable_counter(f"{family.name}_count", [counts], description=family.help)
    _ = meter.create_observable_counter(f"{family.name}_sum", [_values(family, reader)], description=family.help)
    _ = meter.create_observable_counter(f"{family.name}_bucket", [buckets], description=family.help)


def _samples(family: Family, reader: _Reader) -> Iterable[Sample]:
    reading = reader()
    return () if reading is None else family.samples(reading)
