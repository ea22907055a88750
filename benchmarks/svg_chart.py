"""Draws a chart as SVG text, so that a page needs no library and no other file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.pages import Chart, Mark

_WIDTH, _HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 44, 48
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
_NUM_TICKS = 5
_LOG_FROM = 4.0  # widest over narrowest x, from which the axis is logarithmic

Scale = Callable[[float], float]


def svg_chart(chart: Chart) -> str:
    """Draw lines with their marks; bars reach from the lowest round to the highest."""
    marks = [mark for line in chart.lines.values() for mark in line]
    xs = sorted({mark.x for mark in marks})
    top = _nice_top(max((mark.high for mark in marks), default=0.0))
    across, up = _x_scale(xs), _y_scale(top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        _text(_WIDTH / 2, 16, chart.title, "middle", bold=True),
        *_axes(chart, xs, top, across, up),
    ]
    for number, (label, line) in enumerate(chart.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _line(line, colour, across, up)
        parts.append(_text(_LEFT + 10 + 110 * number, 34, label, "start", colour=colour))
    return "\n".join([*parts, "</svg>"])


def _axes(chart: Chart, xs: Sequence[float], top: float, across: Scale, up: Scale) -> list[str]:
    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in range(_NUM_TICKS + 1):
        value = top * tick / _NUM_TICKS
        y = up(value)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "end"))
    parts += [_text(across(x), base + 16, f"{x:g}", "middle") for x in xs]
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 10, chart.x_label, "middle"))
    turn = f'<g transform="translate(14 {(_TOP + base) / 2:.0f}) rotate(-90)">'
    return [*parts, turn, _text(0, 0, chart.y_label, "middle"), "</g>"]


def _line(line: Sequence[Mark], colour: str, across: Scale, up: Scale) -> list[str]:
    points = " ".join(f"{across(mark.x):.1f},{up(mark.y):.1f}" for mark in line)
    parts = [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>']
    for mark in line:
        x, told = across(mark.x), f"{mark.x:g}: {mark.y:.4g} ({mark.low:.4g} to {mark.high:.4g})"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(mark.low):.1f}" y2="{up(mark.high):.1f}" '
            f'stroke="{colour}"/>'
        )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{up(mark.y):.1f}" r="3.2" fill="{colour}">'
            f"<title>{escape(told)}</title></circle>"
        )
    return parts


def _x_scale(xs: Sequence[float]) -> Scale:
    """Place x between the margins; logarithmic where values are far apart."""
    is_log = bool(xs) and xs[0] > 0 and xs[-1] / xs[0] >= _LOG_FROM
    warp: Scale = math.log2 if is_log else lambda x: x
    low, high = (warp(xs[0]), warp(xs[-1])) if xs else (0.0, 0.0)
    inset = _LEFT + 20
    width = _WIDTH - _RIGHT - 20 - inset
    return lambda x: inset + width * ((warp(x) - low) / (high - low) if high > low else 0.5)


def _y_scale(top: float) -> Scale:
    base = _HEIGHT - _BOTTOM
    return lambda y: base - (base - _TOP) * y / top


def _nice_top(value: float) -> float:
    """Give a round number above a value."""
    if value <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(value))
    return float(next(step * unit for step in (1, 2, 2.5, 5, 10) if step * unit >= value))


def _text(
    x: float, y: float, words: str, anchor: str, *, colour: str = "#333", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight} '
        f'font-size="11" font-family="sans-serif">{escape(words)}</text>'
    )
