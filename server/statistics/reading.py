"""One look at a server's metrics: every counter and gauge, and the buckets of the latencies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Metric

_MODEL = "model_name"
_NOT_TOTALS = ("_bucket", "_created")


@dataclass(frozen=True, slots=True)
class Reading:
    """The metrics at one moment.

    Attributes:
        totals: every counter and gauge, and the sums and counts of histograms, by name and by the
            labels that tell one from another.
        by_label: of names with one such label, the same by its value.
        buckets: of histograms without one, upper bounds and how many were at most so large.
        time: in Unix seconds.
        moment: the same on the monotonic clock.
    """

    totals: Mapping[str, float]
    by_label: Mapping[str, Mapping[str, float]]
    buckets: Mapping[str, list[tuple[float, float]]]
    time: float
    moment: float


def read(metrics: Iterable[Metric]) -> Reading:
    """Read metrics as their collectors give them."""
    totals: dict[str, float] = {}
    by_label: dict[str, dict[str, float]] = {}
    buckets: dict[str, list[tuple[float, float]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            name, labels = sample.name, {k: v for k, v in sample.labels.items() if k != _MODEL}
            if name.endswith("_bucket") and len(labels) == 1:
                buckets.setdefault(metric.name, []).append((float(labels["le"]), sample.value))
            if name.endswith(_NOT_TOTALS):
                continue
            totals[_series(name, labels)] = sample.value
            if len(labels) == 1:
                by_label.setdefault(name, {})[next(iter(labels.values()))] = sample.value
    return Reading(totals, by_label, buckets, time.time(), time.monotonic())


def _series(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"
