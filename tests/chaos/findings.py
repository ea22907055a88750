"""What a phase found: numbers, laws that were broken, and bars that were missed.

Broken laws fail tests. Times depend on the machine, and memory is only flat behind a long enough
warm-up, so bars are for `make chaos`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_MAX_TOLD = 8


@dataclass(slots=True)
class Finding:
    """What came of one phase.

    Attributes:
        phase: its name.
        numbers: what was counted and measured, by name.
        violations: laws that were broken, and how often.
        missed: what took longer, or more memory, than it may.
        seconds: that the phase took.
    """

    phase: str
    numbers: dict[str, Any] = field(default_factory=dict)
    violations: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def hold(self, is_so: bool, otherwise: str) -> None:
        """Note that a law was broken, unless it was not."""
        if not is_so:
            self.violations[otherwise] += 1

    def within(self, what: str, seconds: float, limit_s: float) -> None:
        """Write down how long something took, and whether that is too long."""
        self.numbers[f"{what}, s"] = round(seconds, 3)
        if seconds > limit_s:
            self.missed.append(f"{what}: {seconds:.3f} s, and {limit_s:g} s may be")

    @property
    def told(self) -> list[str]:
        """Give the broken laws as lines, the most frequent first."""
        return [f"{law} ({n} times)" for law, n in self.violations.most_common(_MAX_TOLD)]

    def as_object(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return {
            "phase": self.phase,
            "seconds": round(self.seconds, 1),
            "numbers": self.numbers,
            "violations": dict(self.violations),
            "missed": self.missed,
        }


def percentile(values: list[float], share: float) -> float:
    """Give the value that so great a share of them does not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
