"""Work that nobody waits for: what is asked for inside `as_background` yields to everybody else.

It says so to whoever makes requests on the same task; how they yield is the engine's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

IS_BACKGROUND: ContextVar[bool] = ContextVar("IS_BACKGROUND", default=False)


@contextmanager
def as_background() -> Iterator[None]:
    """Let what is asked for in this context, and by tasks that begin in it, yield to others."""
    token = IS_BACKGROUND.set(True)
    try:
        yield
    finally:
        IS_BACKGROUND.reset(token)
