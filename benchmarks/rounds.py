"""Numbers of several rounds: their percentiles, their spread, and a table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.pages import Grid

Numbers = dict[str, float | None]
"""Quantities by name; None = it could not be measured."""
Spread = Mapping[str, tuple[float, ...] | None]
"""Median, lowest and highest of the rounds, by quantity."""
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of a point.

    Attributes:
        name: in JSON.
        label: in words, with the unit.
        digits: behind the point.
    """

    name: str
    label: str
    digits: int = 1


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Interpolate between the neighbours in order; None where there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def weighted_percentile(pairs: Sequence[tuple[float, float]], percent: float) -> float | None:
    """Give the lowest value at which the weights up to it reach the share.

    Args:
        pairs: values and their weights.
        percent: the share.
    """
    ordered = sorted(pair for pair in pairs if pair[1] > 0)
    total = sum(weight for _, weight in ordered)
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        # The last of many sums may fall short of their total by rounding.
        if reached >= total * percent / 100 * (1 - 1e-12):
            return value
    return None


def over_rounds(
    rounds: Sequence[Numbers],
) -> dict[str, tuple[float, ...] | None]:
    """Give median, lowest and highest of each number; None where a round lacks it."""
    merged: dict[str, tuple[float, ...] | None] = {}
    for name in dict.fromkeys(name for numbers in rounds for name in numbers):
        values = [value for numbers in rounds if (value := numbers.get(name)) is not None]
        is_whole = len(values) == len(rounds)
        merged[name] = (median(values), min(values), max(values)) if is_whole else None
    return merged


def grid_of(title: str, quantities: Sequence[Quantity], points: Mapping[str, Spread]) -> Grid:
    """Give a table of quantities over points; quantities that no point has are left out."""
    told = [q for q in quantities if any(values.get(q.name) for values in points.values())]
    rows = [[q.label, *(_cell(q, values) for values in points.values())] for q in told]
    return Grid(title, ["", *points], rows)


def _cell(quantity: Quantity, values: Spread) -> str:
    found = values.get(quantity.name)
    if not found:
        return ABSENT
    told = [f"{value:.{quantity.digits}f}" for value in found]
    middle, low, high = told
    return middle if low == high else f"{middle}\n{low} to {high}"
