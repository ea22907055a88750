"""What the parts of a start take, for one line in the log."""

from __future__ import annotations

import time


class StartupClock:
    """Measures parts that follow one another; it starts when it is made."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._parts: list[tuple[str, float]] = []

    def lap(self, part: str) -> None:
        """Say that a part is over, and the next begins."""
        now = time.perf_counter()
        self._parts.append((part, now - self._mark))
        self._mark = now

    def __str__(self) -> str:
        """Write the parts as a log line has them, in seconds."""
        return " ".join(f"{part}_s={seconds:.2f}" for part, seconds in self._parts)
