"""Draws tokens per second over the load, where matplotlib is."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.part import Outcome
from benchmarks.plot_style import AUTO, MARGIN, OFF, PANEL_HEIGHT, PANEL_WIDTH, STYLE

_COLOURS = {"auto": AUTO, "off": OFF}


def draw_throughput(outcomes: Sequence[Outcome], stem: Path) -> list[Path]:
    """Draw every lane of the part that measured the most lanes.

    Returns:
        The files that were written; none where there is nothing to draw or to draw with.
    """
    rows = max((_rows(outcome) for outcome in outcomes), key=_num_lanes, default=[])
    if not rows or find_spec("matplotlib") is None:
        return []
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    path = stem.with_name(f"{stem.name}_throughput.png")
    with rc_context(STYLE):
        size = (1.6 * PANEL_WIDTH + MARGIN, 1.4 * PANEL_HEIGHT + MARGIN)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for lane in dict.fromkeys(row["lane"] for row in rows):
            own = [row for row in rows if row["lane"] == lane]
            points = [(row["concurrency"], median(row["rates"])) for row in own]
            loads, rates = zip(*points, strict=True)
            axes.plot(loads, rates, marker="o", label=lane, color=_COLOURS.get(lane))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("requests at once")
        axes.set_ylabel("tokens/s, all requests")
        axes.legend()
        figure.savefig(path)
    return [path]


def _rows(outcome: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = outcome.notes.details.get("throughput", [])
    return rows


def _num_lanes(rows: list[dict[str, Any]]) -> int:
    return len({row["lane"] for row in rows})
