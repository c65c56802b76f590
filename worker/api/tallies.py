"""Counters and histograms for what every poll passes: plain numbers, turned into Prometheus' form when somebody asks.

``prometheus_client``'s own take a lock for each change, and polls are many. These belong to one event loop: the one
that serves requests and shows metrics.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

INFINITY: Final = float("inf")
Labels = tuple[str | int, ...]


class Tally(Collector):
    """A counter.

    Args:
        name: without ``_total``.
        told: what is counted.
        labels: their names.
        registry: where it is shown.
    """

    def __init__(self, name: str, told: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._told, self._labels = name, told, labels
        self.counts: dict[Labels, float] = {}
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count more; 0 makes a series known."""
        self.counts[labels] = self.counts.get(labels, 0) + amount

    def collect(self) -> Iterable[CounterMetricFamily]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._told, labels=self._labels)
        for labels, count in self.counts.items():
            family.add_metric([str(label) for label in labels], count)
        yield family


class Times(Collector):
    """A histogram of seconds.

    Args:
        name: ends with ``_seconds``.
        told: what is measured.
        labels: their names.
        bounds: upper bounds of the buckets, ascending, without infinity.
        registry: where it is shown.
    """

    def __init__(
        self, name: str, told: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._told, self._labels = name, told, labels
        self._bounds = [float(bound) for bound in bounds]
        self._series: dict[Labels, list[float]] = {}
        """For each: how many fell into each bucket, those beyond the last, and the sum of all."""
        registry.register(self)

    def show(self, labels: Labels) -> None:
        """Make a series known."""
        self._series.setdefault(labels, [0.0] * (len(self._bounds) + 2))

    def observe(self, seconds: float, labels: Labels = ()) -> None:
        """One more."""
        series = self._series.get(labels)
        if series is None:
            self.show(labels)
            series = self._series[labels]
        series[bisect_left(self._bounds, seconds)] += 1
        series[-1] += seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._told, labels=self._labels)
        for labels, series in self._series.items():
            cumulated, buckets = 0.0, []
            for bound, count in zip([*self._bounds, INFINITY], series[:-1], strict=True):
                cumulated += count
                buckets.append((str(floatToGoString(bound)), cumulated))  # type: ignore[no-untyped-call]
            family.add_metric([str(label) for label in labels], buckets, series[-1])
        yield family
