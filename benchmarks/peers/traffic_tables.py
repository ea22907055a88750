"""Tables and charts of two servers under the same open load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.pages import Chart, Grid, Mark
from benchmarks.peers.traffic_rounds import Pair
from benchmarks.rounds import Quantity, grid_of

_QUANTITIES = (
    Quantity("ttft_ms_p50", "TTFT p50, ms", 2),
    Quantity("ttft_ms_p99", "TTFT p99, ms", 2),
    Quantity("itl_per_event_ms_p99", "ITL per event p99, ms", 2),
    Quantity("tpot_ms_p50", "TPOT p50, ms", 2),
    Quantity("tokens_per_s", "tokens/s", 2),
    Quantity("requests", "requests", 0),
    Quantity("errors", "errors", 0),
    Quantity("prompt_tokens_mean", "prompt tokens, mean"),
    Quantity("output_tokens_mean", "answer tokens, mean"),
    Quantity("late_ms_p99", "sent late by p99, ms", 2),
    Quantity("server_cpu", "processors of the server", 2),
    Quantity("idle_cpu", "processors of the other one", 3),
)
_X_LABEL = "requests offered, % of the lower capacity"
_CHARTS = {
    "ttft": ("time to first token", "ms", {"ttft_ms_p50": "p50", "ttft_ms_p99": "p99"}),
    "itl": ("inter-token latency per event", "ms", {"itl_per_event_ms_p99": "p99"}),
    "tokens": ("tokens/s", "tokens/s", {"tokens_per_s": ""}),
}


def capacity_grid(capacities: Mapping[str, Mapping[str, float]]) -> Grid:
    """Give what each server can do at most, of each kind of requests."""
    labels = list(dict.fromkeys(label for found in capacities.values() for label in found))
    rows = [
        [work, *(f"{found[label]:.2f}" for label in labels), f"{min(found.values()):.2f}"]
        for work, found in capacities.items()
    ]
    title = "capacity: requests/s while all streams were busy, the better round"
    return Grid(title, ["", *labels, "taken as 100 %"], rows)


def grids(pairs: Sequence[Pair]) -> Iterator[Grid]:
    """Give a table for each load: each server, and ours over the peer's."""
    for pair in pairs:
        columns = {label: point.spread for label, point in pair.points.items()}
        title = f"{pair.load.label}: median of the rounds (lowest to highest)"
        yield grid_of(title, _QUANTITIES, columns | {" / ".join(columns): pair.ratios})


def charts(pairs: Sequence[Pair]) -> list[Chart]:
    """Give the charts over Poisson loads; without what could not be measured."""
    poisson = [pair for pair in pairs if pair.is_poisson]
    found = []
    for name, (title, y_label, quantities) in _CHARTS.items():
        lines = {
            f"{label} {said}".strip(): marks
            for label in poisson[0].points
            for quantity, said in quantities.items()
            if (marks := _marks(poisson, label, quantity))
        }
        if lines:
            found.append(Chart(name, title, _X_LABEL, y_label, lines))
    return found


def _marks(pairs: Sequence[Pair], label: str, name: str) -> list[Mark]:
    spreads = ((pair.load.place, pair.points[label].spread.get(name)) for pair in pairs)
    return [Mark(place, *found) for place, found in spreads if found]
