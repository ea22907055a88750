"""Percentiles out of histograms: a bucket's values are taken to lie evenly in it."""

from __future__ import annotations

from collections.abc import Sequence

Buckets = Sequence[tuple[float, float]]
"""Upper bounds, ascending, and how many values were at most so large."""


def since(before: Buckets, now: Buckets) -> Buckets:
    """Give the buckets of the values that came between two looks at a histogram."""
    return [(bound, count - was) for (bound, count), (_, was) in zip(now, before, strict=True)]


def percentile(buckets: Buckets, share: float) -> float | None:
    """Give the value below which this share of all lies; None where there are none.

    Values beyond the last finite bound count as that bound.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0.0:
        return None
    wanted, low, num_below = share * total, 0.0, 0.0
    for bound, count in buckets[:-1]:
        if count >= wanted:
            inside = count - num_below
            return low + (bound - low) * ((wanted - num_below) / inside if inside else 1.0)
        low, num_below = bound, count
    return low
