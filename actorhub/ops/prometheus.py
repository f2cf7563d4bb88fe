"""The table of metrics in Prometheus's text format."""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from actorhub.ops.metrics import FAMILIES, Family, Sample
from actorhub.ops.observer import BOUNDS
from actorhub.ops.reading import Reading

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_ENDS: Final = (*map(str, BOUNDS), "+Inf")


class Exposition(Collector):
    """One runner's metrics, and memory, time and files of its process, in a registry of their own."""

    def __init__(self, read: Callable[[], Reading | None]) -> None:
        """Prepare.

        Args:
            read: Reads the runner; returns `None` until it has been made.
        """
        self._read = read
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the metrics as they are now."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, those without samples included."""
        reading = self._read()
        if reading is not None:
            for family in FAMILIES:
                yield _metric(family, family.samples(reading))


def _metric(family: Family, samples: Iterable[Sample]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for sample in samples:
            buckets = list(zip(_ENDS, accumulate(sample.counts), strict=True))
            histogram.add_metric(sample.labels, buckets, sample.value)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for sample in samples:
        metric.add_metric(sample.labels, sample.value)
    return metric
