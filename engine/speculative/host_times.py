"""What a step takes beside its passes: planning, keeping the books, telling.

Where models are small this is no small part of a step, and drafts add to it. It hardly depends on
what is drafted, so a mean by requests will do, of plain steps and of others. Pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# A step's fixed part, in requests that would take as long.
_FIXED_REQUESTS = 8
_MEMORY_STEPS = 64
# A step that the machine held up must not upset the mean.
_MOST_SEEN = 4.0


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

    _plain: _Mean = field(default_factory=_Mean, init=False)
    _drafting: _Mean = field(default_factory=_Mean, init=False)

    def observe(self, num_seqs: int, seconds: float, *, has_drafts: bool) -> None:
        """Learn from a step in which everybody decoded."""
        mean = self._drafting if has_drafts else self._plain
        mean.observe(seconds / (_FIXED_REQUESTS + num_seqs))

    def of(self, num_seqs: int, *, has_drafts: bool) -> float:
        """Give what is expected; nothing is known of a kind of step that was never seen."""
        mean = self._drafting if has_drafts and self._drafting.num_seen else self._plain
        return mean.seconds * (_FIXED_REQUESTS + num_seqs)
