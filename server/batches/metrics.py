"""What is measured of batches: how many there are by status, and what becomes of their lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.batches.status import Status

_OUTCOMES = ("completed", "failed")


class BatchMetrics(Collector):
    """Of one server.

    Args:
        prefix: of every name.
        model_name: value of the label `model_name`.
        registry: tells it all.

    Attributes:
        counts: batches by status.
        num_running: gives how many lines are being asked.
        is_paused: gives whether the disk lets nothing be written.
    """

    def __init__(self, prefix: str, model_name: str, registry: CollectorRegistry) -> None:
        self._prefix = prefix
        self._model_name = model_name
        self.counts: dict[str, int] = {}
        self.num_running: Callable[[], int] = lambda: 0
        self.is_paused: Callable[[], bool] = lambda: False
        lines = Counter(
            prefix + "batch_lines",
            "Lines of batches that are done, by the file that they are in.",
            ["model_name", "outcome"],
            registry=registry,
        )
        self._lines = {outcome: lines.labels(model_name, outcome) for outcome in _OUTCOMES}
        registry.register(self)

    def count_lines(self, *, is_success: bool, number: int = 1) -> None:
        """Count lines that are done."""
        self._lines["completed" if is_success else "failed"].inc(number)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the gauges as they are now."""
        batches = GaugeMetricFamily(
            self._prefix + "batches", "Batches, by status.", labels=["model_name", "status"]
        )
        for status in Status:
            batches.add_metric([self._model_name, status], self.counts.get(status, 0))
        yield batches
        for name, meaning, value in (
            ("batch_lines_running", "Lines that are being asked.", self.num_running()),
            ("batches_paused", "1 while nothing can be written down, else 0.", self.is_paused()),
        ):
            gauge = GaugeMetricFamily(self._prefix + name, meaning, labels=["model_name"])
            gauge.add_metric([self._model_name], float(value))
            yield gauge
