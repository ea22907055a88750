"""Draws a drifting workload over the steps of `auto`: speed over `off`, and who drafts how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.drift_series import Phase
from benchmarks.plot_style import AUTO, MARGIN, OFF, PANEL_HEIGHT, PANEL_WIDTH, STYLE

_WIDTH = 2.5  # panels
_STATIC, _EXPECTED = "tab:blue", "0.2"


def write_plot(phases: Sequence[Phase], lanes: Sequence[str], width: int, path: Path) -> Path:
    """Write one PNG.

    Args:
        phases: in the order in which they came.
        lanes: those beside `off`.
        width: steps of a running mean; a point is the mean of those that begin with it.
        path: the file.
    """
    with rc_context(STYLE):
        size = (_WIDTH * PANEL_WIDTH, 2 * PANEL_HEIGHT + MARGIN)
        figure = Figure(figsize=size, layout="constrained")
        speed, drafts = figure.subplots(2, 1, sharex=True)
        _draw_speed(speed, phases, lanes, width)
        _draw_drafts(drafts, phases, width)
        for panel in (speed, drafts):
            for start, _ in list(_placed(phases))[1:]:
                panel.axvline(start, color=OFF, linewidth=0.8)
            panel.set_ylim(bottom=0)
            panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)
    return path


def _draw_speed(panel: Axes, phases: Sequence[Phase], lanes: Sequence[str], width: int) -> None:
    for start, phase in _placed(phases):
        windows = phase.windows(width)
        steps = [start + first for first, _ in windows]
        label = None if start else "auto expects"
        expected = [phase.expected(window) for window in windows]
        panel.plot(steps, expected, label=label, color=_EXPECTED, linewidth=0.8, linestyle=":")
        for lane in lanes:
            panel.plot(
                steps,
                [phase.speed(lane, window) for window in windows],
                label=None if start else (f"k={lane}" if lane.isdigit() else lane),
                color=AUTO if lane == "auto" else _STATIC,
                linewidth=2.0 if lane == "auto" else 1.2,
            )
        recovered = phase.recovered_after(width)
        if recovered is not None:
            at = phase.speed("auto", (recovered, recovered + width))
            label = None if start else "recovered"
            panel.plot([start + recovered], [at], "o", color="black", label=label, zorder=4)
        name = f" {phase.name}"
        panel.text(start, 1.02, name, transform=panel.get_xaxis_transform(), fontsize="medium")
    panel.axhline(1.0, color=OFF, linewidth=0.8, linestyle="--", label="off")
    panel.set_ylabel("speed over off")


def _draw_drafts(panel: Axes, phases: Sequence[Phase], width: int) -> None:
    drafters = sorted({name for phase in phases for name in phase.drafters})
    for place, drafter in enumerate(drafters):
        for start, phase in _placed(phases):
            windows = phase.windows(width)
            panel.plot(
                [start + first for first, _ in windows],
                [phase.drafts(drafter, window) for window in windows],
                label=None if start else drafter,
                color=f"C{place}",
            )
    panel.set_ylabel("drafts per request and pass")
    panel.set_xlabel("steps of auto")


def _placed(phases: Sequence[Phase]) -> Iterator[tuple[int, Phase]]:
    start = 0
    for phase in phases:
        yield start, phase
        start += phase.num_steps
