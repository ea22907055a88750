"""Requests in flights, for ways that answer a batch from its beginning to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice


def flights(prompts: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Give the prompts, `size` at a time; the last flight may be smaller."""
    rest = iter(prompts)
    while flight := list(islice(rest, size)):
        yield flight
