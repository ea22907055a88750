"""Draws the charts of a page as PNG files. Needs matplotlib, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.pages import Chart
from benchmarks.plot_style import MARGIN, PANEL_HEIGHT, PANEL_WIDTH, STYLE

_LOG_FROM = 4.0


def write_charts(charts: Sequence[Chart], stem: Path) -> list[Path]:
    """Write a file for each chart.

    Args:
        charts: what is drawn.
        stem: the files' common beginning.

    Returns:
        The files.
    """
    paths = []
    with rc_context(STYLE):
        for chart in charts:
            path = stem.with_name(f"{stem.name}_{chart.name}.png")
            _draw(chart).savefig(path)
            paths.append(path)
    return paths


def _draw(chart: Chart) -> Figure:
    size = (1.5 * PANEL_WIDTH + MARGIN, PANEL_HEIGHT + MARGIN)
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.subplots()
    for label, line in chart.lines.items():
        below = [mark.y - mark.low for mark in line]
        above = [mark.high - mark.y for mark in line]
        xs, ys = [mark.x for mark in line], [mark.y for mark in line]
        panel.errorbar(xs, ys, yerr=[below, above], label=label, marker="o", capsize=2)
    xs = sorted({mark.x for line in chart.lines.values() for mark in line})
    if xs[0] > 0 and xs[-1] / xs[0] >= _LOG_FROM:
        panel.set_xscale("log", base=2)
    panel.set_xticks(xs, labels=[f"{x:g}" for x in xs])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_title(chart.title)
    panel.set_xlabel(chart.x_label)
    panel.set_ylabel(chart.y_label)
    panel.legend()
    return figure
