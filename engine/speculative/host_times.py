"""What a step takes beside its passes: planning, keeping the books, telling.

Where models are small this is no small part of a step, and drafts add to it. It hardly depends on
what is drafted, so a mean by requests will do for each way to draft. Pure Python.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

# A step's fixed part, in requests that would take as long.
_FIXED_REQUESTS = 8
_MEMORY_STEPS = 64
# A step that the machine held up must not upset the mean.
_MOST_SEEN = 4.0


class Drafting(enum.Enum):
    """How a step drafts: not at all, as far as is planned, or as far as a gate lets it."""

    NONE = enum.auto()
    FREE = enum.auto()
    GATED = enum.auto()


# A way that was never seen is taken for the next one here that was.
_LIKE = {
    Drafting.NONE: (Drafting.NONE, Drafting.FREE, Drafting.GATED),
    Drafting.FREE: (Drafting.FREE, Drafting.GATED, Drafting.NONE),
    Drafting.GATED: (Drafting.GATED, Drafting.FREE, Drafting.NONE),
}


@dataclass(slots=True)
class _Mean:
    """Seconds per request, old steps fading.

    Attributes:
        seconds: the mean.
        num_seen: steps so far.
    """

    seconds: float = 0.0
    num_seen: int = 0

    def observe(self, seconds: float) -> None:
        self.num_seen += 1
        if self.seconds:
            seconds = min(seconds, _MOST_SEEN * self.seconds)
        self.seconds += (seconds - self.seconds) / min(self.num_seen, _MEMORY_STEPS)


@dataclass(slots=True)
class HostTimes:
    """Seconds of steps beside their passes."""

    _means: dict[Drafting, _Mean] = field(default_factory=dict, init=False)

    def observe(self, num_seqs: int, seconds: float, drafting: Drafting) -> None:
        """Learn from a step in which everybody decoded."""
        mean = self._means.setdefault(drafting, _Mean())
        mean.observe(seconds / (_FIXED_REQUESTS + num_seqs))

    def of(self, num_seqs: int, drafting: Drafting) -> float:
        """Give what is expected; nothing, before anything was seen."""
        for like in _LIKE[drafting]:
            if like in self._means:
                return self._means[like].seconds * (_FIXED_REQUESTS + num_seqs)
        return 0.0
