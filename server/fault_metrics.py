"""What went wrong, for Prometheus: crashes, hangs, refusals, failed drafters, errors by type."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.client.supervision import FaultCounts
from engine.metrics import EngineStats


class FaultMetrics(Collector):
    """Reads the counts of the engine and of its client when Prometheus asks, and counts errors.

    Args:
        prefix: of every name.
        model_name: value of the label `model_name`.
        registry: where the metrics are told.
        read_stats: gives the engine's counters.
        read_faults: gives its client's.
    """

    def __init__(
        self,
        prefix: str,
        model_name: str,
        registry: CollectorRegistry,
        read_stats: Callable[[], EngineStats],
        read_faults: Callable[[], FaultCounts],
    ) -> None:
        self._prefix = prefix
        self._model_name = model_name
        self._read_stats = read_stats
        self._read_faults = read_faults
        self._errors = Counter(
            f"{prefix}errors",
            "Errors that callers were told, by their class.",
            ["model_name", "type"],
            registry=registry,
        )
        registry.register(self)

    def observe_error(self, error: BaseException) -> None:
        """Count an error that a caller is told."""
        self._errors.labels(self._model_name, type(error).__name__).inc()

    def collect(self) -> Iterable[Metric]:
        """Give the counts; see `prometheus_client`."""
        faults, stats = self._read_faults(), self._read_stats()
        for name, meaning, value in (
            (
                "engine_restarts",
                "Times that the engine's process was started anew.",
                faults.num_restarts,
            ),
            (
                "watchdog_kills",
                "Times that the engine's process was ended because nothing moved.",
                faults.num_watchdog_kills,
            ),
            (
                "requests_refused_for_crashes",
                "Requests refused because they crashed the engine before.",
                faults.num_requests_refused,
            ),
            (
                "shed_steps",
                "Steps that did not fit into memory and were computed again in parts.",
                stats.num_shed_steps,
            ),
        ):
            counter = CounterMetricFamily(self._prefix + name, meaning, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter
        failures = CounterMetricFamily(
            f"{self._prefix}drafter_failures",
            "Times that a drafter raised and was switched off.",
            labels=["model_name", "drafter"],
        )
        for drafter, count in stats.drafter_failures.items():
            failures.add_metric([self._model_name, drafter], count)
        yield failures
