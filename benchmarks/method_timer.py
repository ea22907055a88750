"""Measures what single functions of the engine take, by standing in front of them for a while."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Place = tuple[Any, str]
"""A class or module, and the name of a function in it."""


@contextmanager
def timed(places: Mapping[str, Place]) -> Iterator[dict[str, float]]:
    """Time functions by the names given here; what they call counts as theirs.

    Every call takes about a microsecond longer.

    Args:
        places: where they are.

    Yields:
        Seconds by name, growing.
    """
    seconds = dict.fromkeys(places, 0.0)
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in places.items()}
    for name, (owner, attribute) in places.items():
        setattr(owner, attribute, _with_timer(originals[name], seconds, name))
    try:
        yield seconds
    finally:
        for name, (owner, attribute) in places.items():
            setattr(owner, attribute, originals[name])


def _with_timer(
    function: Callable[..., Any], seconds: dict[str, float], name: str
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - started

    return call
