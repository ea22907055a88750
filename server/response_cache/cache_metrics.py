"""What a response cache has done and holds, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.metrics import PREFIX
from server.response_cache.cache import ResponseCache
from server.response_cache.cache_policy import Outcome


class CacheMetrics(Collector):
    """Reads a cache's counts when Prometheus asks.

    Args:
        model_name: value of the label `model_name`.
        cache: whose.
    """

    def __init__(self, model_name: str, cache: ResponseCache) -> None:
        self._model_name = model_name
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        """Give the counts; see `prometheus_client`."""
        cache = self._cache
        for name, meaning, value in (
            ("hits", "Calls that were answered from memory.", cache.outcomes[Outcome.HIT]),
            (
                "misses",
                "Calls that could have been answered from memory and were not.",
                cache.outcomes[Outcome.MISS],
            ),
            ("stores", "Answers that were kept.", cache.num_stores),
        ):
            counter = CounterMetricFamily(
                f"{PREFIX}response_cache_{name}", meaning, labels=["model_name"]
            )
            counter.add_metric([self._model_name], value)
            yield counter
        yield self._evictions()
        for name, meaning, value in (
            ("bytes", "What the answers that are kept take.", cache.num_bytes),
            ("entries", "Answers that are kept.", cache.num_entries),
        ):
            gauge = GaugeMetricFamily(
                f"{PREFIX}response_cache_{name}", meaning, labels=["model_name"]
            )
            gauge.add_metric([self._model_name], value)
            yield gauge

    def _evictions(self) -> Metric:
        evictions = CounterMetricFamily(
            f"{PREFIX}response_cache_evictions",
            "Answers that were forgotten, for want of room (size) or because of their age.",
            labels=["model_name", "reason"],
        )
        evictions.add_metric([self._model_name, "size"], self._cache.num_evicted)
        evictions.add_metric([self._model_name, "age"], self._cache.num_expired)
        return evictions
