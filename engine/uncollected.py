"""Lets a process import without looking for garbage, of which imports make next to none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Rest the garbage collector, and leave out of its later rounds what is there at the end.

    Hundreds of modules are a million objects that stay; looking through them again and again takes
    a fifth of the time of their imports, and later milliseconds of steps. For processes of our own.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
