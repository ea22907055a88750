"""Rounds numbers of rows and requests up, so that few shapes serve all batches; no torch."""

from __future__ import annotations

_SMALL = (1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64)


def round_up(count: int) -> int:
    """Give the smallest bucket that holds `count`: beyond 64, four to each doubling."""
    assert count > 0, "an empty batch has no bucket"
    if count <= _SMALL[-1]:
        return next(size for size in _SMALL if size >= count)
    step = 1 << (count.bit_length() - 3)
    return -(-count // step) * step


def buckets_up_to(limit: int) -> list[int]:
    """Give all buckets that batches of 1 up to `limit` fall into."""
    buckets: list[int] = []
    count = 1
    while count <= limit:
        buckets.append(round_up(count))
        count = buckets[-1] + 1
    return buckets


def query_class(num_rows: int) -> int:
    """Round the rows of one request up to a power of two."""
    return 1 << (num_rows - 1).bit_length()
