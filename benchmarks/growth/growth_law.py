"""How something grows with something else: the best straight line, and the exponent of growth.

The exponent is that of what comes on top of the first point, `y - y0 ~ (x - x0)^p`: a constant
part does not hide it, and a straight line has exactly 1, wherever it begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.pages import Mark

# A point counts at most as if its rise were known to 5 percent.
_BEST_PRECISION = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthLaw:
    """A line through measured points, and how fast they grow.

    Attributes:
        intercept: of the line.
        slope: of the line.
        exponent: of growth; None = no growth beyond the spread of the rounds.
    """

    intercept: float
    slope: float
    exponent: float | None

    def at(self, x: float) -> float:
        """Give the line's value."""
        return self.intercept + self.slope * x

    @property
    def exponent_text(self) -> str:
        """The exponent in words."""
        return "no growth beyond noise" if self.exponent is None else f"{self.exponent:.2f}"

    def is_at_most(self, exponent: float) -> bool:
        """Whether growth is no faster than a power."""
        return self.exponent is None or self.exponent <= exponent


def growth_law(marks: Sequence[Mark]) -> GrowthLaw:
    """Find the law of at least two points, given from left to right.

    Args:
        marks: medians with the range of their rounds; x differ, and y are above 0.
    """
    # Relative errors count: the small end of a range is as well known as the large one.
    slope, intercept = _line([(m.x, m.y, 1 / m.y**2) for m in marks])
    first = marks[0]
    rises = []
    for mark in marks[1:]:
        rise = mark.y - first.y
        noise = math.hypot(mark.high - mark.low, first.high - first.low) / 2
        if rise <= noise or rise <= 0:
            continue
        precision = min(_BEST_PRECISION, rise / noise) if noise else _BEST_PRECISION
        rises.append((math.log(mark.x - first.x), math.log(rise), precision**2))
    exponent = _line(rises)[0] if len(rises) > 1 else None
    return GrowthLaw(intercept=intercept, slope=slope, exponent=exponent)


def _line(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Give slope and intercept of the least squares through (x, y, weight)."""
    total = sum(w for _, _, w in points)
    mean_x = sum(x * w for x, _, w in points) / total
    mean_y = sum(y * w for _, y, w in points) / total
    across = sum(w * (x - mean_x) ** 2 for x, _, w in points)
    slope = sum(w * (x - mean_x) * (y - mean_y) for x, y, w in points) / across
    return slope, mean_y - slope * mean_x
