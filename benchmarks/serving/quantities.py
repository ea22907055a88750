"""How the numbers of a point are called and shown, in tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.pages import Chart, Grid, Mark
from benchmarks.rounds import Quantity, Spread, grid_of
from benchmarks.serving.statistics import PERCENTILES


def _latencies(name: str, label: str) -> list[Quantity]:
    return [Quantity(f"{name}_p{p}", f"{label} p{p}, ms", 2) for p in PERCENTILES]


_RATES = [
    Quantity("tokens_per_s", "tokens/s"),
    Quantity("steady_tokens_per_s", "tokens/s while all streams were busy"),
    Quantity("requests_per_s", "requests/s", 2),
    Quantity("goodput_per_s", "goodput: requests/s inside the SLO", 2),
    Quantity("slo_share", "share inside the SLO", 3),
]
_TIMES = [
    *_latencies("ttft_ms", "TTFT"),
    *_latencies("tpot_ms", "TPOT"),
    *_latencies("itl_per_event_ms", "ITL per event"),
    *_latencies("itl_per_token_ms", "ITL per token"),
    *_latencies("e2e_ms", "end to end"),
]
_COUNTS = [
    Quantity("requests", "requests", 0),
    Quantity("errors", "errors", 0),
    Quantity("prompt_tokens_mean", "prompt tokens, mean"),
    Quantity("output_tokens_mean", "answer tokens, mean"),
    Quantity("tokens_per_event", "tokens per event", 2),
    Quantity("tokens_per_target_pass", "tokens per target pass", 2),
    Quantity("cached_share", "prompt tokens from the cache, share", 3),
    Quantity("joules_per_token", "joules per token", 3),
    Quantity("cost_per_million_tokens", "cost per million tokens", 3),
]
_CLIENT = [
    Quantity("client_cpu_share", "client CPU, cores", 3),
    Quantity("client_cpu_us_per_event", "client CPU per event, us"),
    Quantity("loop_lag_ms_p50", "event loop late by p50, ms", 2),
    Quantity("loop_lag_ms_p99", "event loop late by p99, ms", 2),
    Quantity("loop_lag_ms_p100", "event loop late by at most, ms", 2),
    Quantity("late_ms_p99", "sent late by p99, ms", 2),
]
_GROUPS = {
    "rates": _RATES,
    "latencies": _TIMES,
    "counts and costs": _COUNTS,
    "the client itself": _CLIENT,
}
_CHARTS = {
    "tokens": ("tokens/s", "tokens/s", {"tokens_per_s": "all requests"}),
    "ttft": ("time to first token", "ms", {"ttft_ms_p50": "p50", "ttft_ms_p99": "p99"}),
    "tpot": ("time per token", "ms", {"tpot_ms_p50": "p50", "tpot_ms_p99": "p99"}),
    "itl": (
        "inter-token latency, p99",
        "ms",
        {"itl_per_event_ms_p99": "per event", "itl_per_token_ms_p99": "per token"},
    ),
    "goodput": ("goodput", "requests/s", {"goodput_per_s": "inside the SLO"}),
}


def point_grids(points: Mapping[str, Spread], floor: Spread | None) -> list[Grid]:
    """Give the tables: a column for each point, a line for each quantity that any point has.

    Args:
        points: numbers by the point's label.
        floor: what the client does against a server that answers at once; None = not measured.
    """
    grids = [
        grid_of(f"{title}: median of the rounds (lowest to highest)", group, points)
        for title, group in _GROUPS.items()
    ]
    if floor is not None:
        title = "the client's own floor, against a server that answers at once"
        grids.append(grid_of(title, [*_RATES[:3], *_TIMES, *_CLIENT], {"null server": floor}))
    return grids


def point_charts(points: Mapping[str, Spread], loads: Sequence[float], x_label: str) -> list[Chart]:
    """Give the charts over the load; without what could not be measured.

    Args:
        points: numbers by the point's label.
        loads: the place of each point on the axis.
        x_label: of the axis.
    """
    charts = []
    for name, (title, y_label, lines) in _CHARTS.items():
        drawn = {label: _marks(points, loads, quantity) for quantity, label in lines.items()}
        drawn = {label: marks for label, marks in drawn.items() if marks}
        if drawn:
            charts.append(Chart(name, title, x_label, y_label, drawn))
    return charts


def _marks(points: Mapping[str, Spread], loads: Sequence[float], name: str) -> list[Mark]:
    pairs = zip(loads, points.values(), strict=True)
    return [Mark(x, *found) for x, values in pairs if (found := values.get(name))]
