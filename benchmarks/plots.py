"""Draws what a sweep measured: four PNG files of one style. Needs matplotlib, which is optional.

A panel is a drafter at a workload and a temperature; off is grey, static numbers of drafts go from
light to dark, auto stands out. Bars are the range of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.plot_style import AUTO, MARGIN, OFF, PANEL_HEIGHT, PANEL_WIDTH, STYLE
from benchmarks.sweep import Measurement

_DODGE = 0.05  # octaves of concurrency
_SHADES = colormaps["Blues"]

Value = Callable[[Measurement], float]
Range = Callable[[Measurement], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Quantity:
    """What a panel shows over the load.

    Attributes:
        label: of the axis, with the unit.
        value: what is drawn.
        spread: lowest and highest; None where there is none.
        with_off: whether plain decoding is drawn too.
        reference: a level to compare with.
    """

    label: str
    value: Value
    spread: Range | None = None
    with_off: bool = False
    reference: float | None = None


def _rate(m: Measurement) -> float:
    return m.num_tokens / m.seconds


def _rate_range(m: Measurement) -> tuple[float, float]:
    return min(m.tokens_per_second), max(m.tokens_per_second)


_RATE = _Quantity("tokens/s, all requests", _rate, _rate_range, with_off=True)
_SPEED_UP = _Quantity(
    "speed over off", lambda m: m.speed_up, lambda m: m.speed_up_spread, reference=1.0
)
_TAU = _Quantity("tau: tokens per target pass", lambda m: m.tokens_per_target_pass, reference=1.0)
_EFFICIENCY = _Quantity("S/tau: speed-up per tau", lambda m: m.efficiency, reference=1.0)


def write_plots(measurements: Sequence[Measurement], stem: Path) -> list[Path]:
    """Write the plots of a sweep.

    Args:
        measurements: of all points.
        stem: the files' common beginning.

    Returns:
        The files.
    """
    with rc_context(STYLE):
        figures = {
            "tokens_per_second": _over_load(measurements, [_RATE]),
            "speed_up": _over_load(measurements, [_SPEED_UP]),
            "tau": _over_load(measurements, [_TAU, _EFFICIENCY]),
            "acceptance": _acceptance(measurements),
        }
        paths = {stem.with_name(f"{stem.name}_{name}.png"): fig for name, fig in figures.items()}
        for path, figure in paths.items():
            figure.savefig(path)
    return list(paths)


def _over_load(measurements: Sequence[Measurement], quantities: Sequence[_Quantity]) -> Figure:
    """Draw quantities over concurrency: a row for each and each drafter, a column for the rest."""
    drafters = list(dict.fromkeys(m.drafter for m in measurements))
    columns = list(dict.fromkeys((m.workload, m.temperature) for m in measurements))
    figure, panels = _grid(len(drafters) * len(quantities), len(columns))
    for row, (drafter, quantity) in enumerate((d, q) for d in drafters for q in quantities):
        for column, (workload, temperature) in enumerate(columns):
            lanes = [
                m
                for m in measurements
                if (m.drafter, m.workload, m.temperature) == (drafter, workload, temperature)
            ]
            panel = panels[row][column]
            _draw_load(panel, lanes, quantity)
            panel.set_title(f"{drafter}, {workload}, T={temperature:g}")
            panel.set_ylabel(quantity.label if column == 0 else "")
        # Set behind the last panel of a row: they share the axis, and setting one end fixes both.
        panels[row][0].set_ylim(bottom=0)
    for panel in panels[-1]:
        panel.set_xlabel("requests at once")
    _add_legend(figure, panels)
    return figure


def _draw_load(panel: Axes, measurements: Sequence[Measurement], quantity: _Quantity) -> None:
    counts = sorted({m.draft_tokens for m in measurements if m.draft_tokens})
    lanes = list(_lanes(measurements))
    for place, (lane, points) in enumerate(lanes):
        draft_tokens = points[0].draft_tokens
        if draft_tokens == 0 and not quantity.with_off:
            continue
        values = [quantity.value(m) for m in points]
        bars = None if quantity.spread is None else _bars(values, map(quantity.spread, points))
        panel.errorbar(
            [m.concurrency * _dodge(place, len(lanes)) for m in points],
            values,
            yerr=bars,
            label=lane,
            marker="o",
            capsize=2,
            elinewidth=0.8,
            zorder=3 if draft_tokens is None else 2,
            **_line_of(draft_tokens, counts),
        )
    loads = sorted({m.concurrency for m in measurements})
    panel.set_xscale("log", base=2)
    panel.set_xticks(loads, labels=list(map(str, loads)))
    panel.minorticks_off()
    if quantity.reference is not None:
        panel.axhline(quantity.reference, color=OFF, linewidth=0.8, linestyle="--", zorder=1)


def _dodge(place: int, count: int) -> float:
    """Move lanes apart on the logarithmic axis, so that their bars do not hide each other."""
    return float(2 ** (_DODGE * (place - (count - 1) / 2)))


def _acceptance(measurements: Sequence[Measurement]) -> Figure:
    """Draw how often each place of a draft was accepted, with the longest static drafts."""
    columns = list(dict.fromkeys((m.workload, m.temperature) for m in measurements))
    drafters = list(dict.fromkeys(m.drafter for m in measurements))
    figure, panels = _grid(1, len(columns))
    for panel, (workload, temperature) in zip(panels[0], columns, strict=True):
        here = [m for m in measurements if (m.workload, m.temperature) == (workload, temperature)]
        for drafter in drafters:
            rates = _acceptance_by_position([m for m in here if m.drafter == drafter])
            panel.plot(range(1, len(rates) + 1), rates, marker="o", label=drafter)
        panel.set_title(f"{workload}, T={temperature:g}")
        panel.set_xlabel("place in the draft")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylim(0, 1)
    panels[0][0].set_ylabel("accepted, of the drafts verified there")
    _add_legend(figure, panels)
    return figure


def _acceptance_by_position(measurements: Sequence[Measurement]) -> list[float]:
    """Add up all loads of the longest static drafts; of auto, where none were static."""
    longest = max((m.draft_tokens for m in measurements if m.draft_tokens), default=None)
    chosen = [m for m in measurements if m.draft_tokens == longest]
    width = max((len(m.drafted_per_position) for m in chosen), default=0)
    rates = []
    for place in range(width):
        drafted = sum(_at(m.drafted_per_position, place) for m in chosen)
        accepted = sum(_at(m.accepted_per_position, place) for m in chosen)
        rates.append(accepted / drafted)
    return rates


def _at(counts: Sequence[int], place: int) -> int:
    return counts[place] if place < len(counts) else 0


def _lanes(measurements: Sequence[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    for lane in dict.fromkeys(m.lane for m in measurements):
        yield lane, [m for m in measurements if m.lane == lane]


def _bars(values: Sequence[float], ranges: Any) -> list[list[float]]:
    """Give the distances to the lowest and the highest, as error bars want them."""
    pairs = [(value - low, high - value) for value, (low, high) in zip(values, ranges, strict=True)]
    return [[max(0.0, low) for low, _ in pairs], [max(0.0, high) for _, high in pairs]]


def _line_of(draft_tokens: int | None, counts: Sequence[int]) -> dict[str, Any]:
    if draft_tokens is None:
        return {"color": AUTO, "linewidth": 2.0}
    if draft_tokens == 0:
        return {"color": OFF, "linewidth": 1.5, "linestyle": "--"}
    shade = 0.4 + 0.55 * counts.index(draft_tokens) / max(1, len(counts) - 1)
    return {"color": _SHADES(shade), "linewidth": 1.2}


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    size = (columns * PANEL_WIDTH + MARGIN, rows * PANEL_HEIGHT + MARGIN)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey="row")
    return figure, [list(row) for row in panels]


def _add_legend(figure: Figure, panels: Sequence[Sequence[Axes]]) -> None:
    handles, labels = panels[0][0].get_legend_handles_labels()
    names = [f"k={label}" if label.isdigit() else label for label in labels]
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
