"""What a part of the program gives back: tables, charts, and bars with what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.pages import Chart, Grid, Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bar, and whether it was reached.

    Attributes:
        what: was measured, in words.
        bar: in words, with the unit.
        measured: likewise.
        is_met: whether the bar was reached.
    """

    what: str
    bar: str
    measured: str
    is_met: bool


@dataclass(slots=True)
class Findings:
    """What a part found.

    Attributes:
        grids: tables.
        charts: drawn beside them.
        verdicts: bars.
        rows: for JSON.
        notes: what the reader must know.
    """

    grids: list[Grid] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over what another part found."""
        self.grids += other.grids
        self.charts += other.charts
        self.verdicts += other.verdicts
        self.notes += other.notes


def verdict_grid(verdicts: Sequence[Verdict]) -> Grid:
    """Give all bars as one table."""
    rows = [(v.what, v.bar, v.measured, "ok" if v.is_met else "missed") for v in verdicts]
    return Grid("bars", ("what", "bar", "measured", "verdict"), rows)


def mark_of(x: float, values: Sequence[float]) -> Mark:
    """Give the median of several rounds, with the lowest and the highest."""
    return Mark(x, median(values), min(values), max(values))


def spread_text(values: Sequence[float], digits: int) -> str:
    """Write the median of several rounds, and their range where they differ."""
    middle, low, high = (f"{v:.{digits}f}" for v in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}-{high})"


def percent_text(shares: Sequence[float], digits: int = 1) -> str:
    """Write the median of several shares in percent, and their range."""
    return f"{spread_text([100 * share for share in shares], digits)} %"
