"""Whether the work at hand may wait for everybody who waits for an answer now.

Batches set the mark for the calls that they make; whoever gives requests to the engine reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

IS_BACKGROUND: ContextVar[bool] = ContextVar("is_background", default=False)


@contextmanager
def in_background() -> Iterator[None]:
    """Mark the work of this task, until the block ends."""
    token = IS_BACKGROUND.set(True)
    try:
        yield
    finally:
        IS_BACKGROUND.reset(token)
