"""Says what to run, from what was measured: numbers in, one choice and one sentence out."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.lanes import lane_name
from benchmarks.sweep import Measurement
from engine.config import NO_DRAFT

WORTH_IT = 1.02
"""A gain below this is told as none."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to run.

    Attributes:
        drafter: by name; None where nobody is worth it.
        draft_tokens: None = auto, 0 = off.
        mean_speed_up: geometric mean over all points, of the best drafter even where it is off.
        measured: the chosen lane at every point; of the best drafter even where it is off.
    """

    drafter: str | None
    draft_tokens: int | None
    mean_speed_up: float
    measured: tuple[Measurement, ...]

    @property
    def is_off(self) -> bool:
        """Whether plain decoding is best."""
        return self.drafter is None

    def describe(self) -> str:
        """Tell the speed-up at the lowest load, and the worst up to the highest."""
        loads = [m.concurrency for m in self.measured]
        first = [m.speed_up for m in self.measured if m.concurrency == min(loads)]
        low, high = f"{min(first):.2f}x", f"{max(first):.2f}x"
        text = f"{low if low == high else f'{low} to {high}'} at {_requests(min(loads))}"
        if max(loads) == min(loads):
            return text
        worst = min(m.speed_up for m in self.measured)
        return f"{text}, never below {worst:.2f}x up to {max(loads)}"


def recommend(measurements: Sequence[Measurement]) -> Recommendation:
    """Choose a drafter with auto, a static number of drafts, or nobody.

    The drafter whose auto has the best geometric mean of speed-ups is chosen; a static number, of
    any drafter, only where it is faster than that by more than the spread at every point; nobody
    where the mean gains less than 2 %.
    """
    lanes = _lanes(measurements)
    autos = [lane for (_, draft_tokens), lane in lanes.items() if draft_tokens is None]
    auto = max(autos, key=_mean)
    rivals = [
        lane for lane in lanes.values() if lane not in autos and _is_clearly_faster(lane, auto)
    ]
    best = max(rivals, key=_mean, default=auto)
    mean = _mean(best)
    if mean < WORTH_IT or best[0].drafter == NO_DRAFT:
        return Recommendation(None, 0, mean, best)
    return Recommendation(best[0].drafter, best[0].draft_tokens, mean, best)


def say(recommendation: Recommendation, command: Sequence[str], draft: str | None) -> str:
    """Put it in a sentence with the command.

    Args:
        recommendation: what to run.
        command: the words that serve the model.
        draft: as `--draft` takes it; None where the command needs none.
    """
    best, words = recommendation, list(command)
    if best.is_off:
        drafter, k = best.measured[0].drafter, best.measured[0].draft_tokens
        return (
            f"Run `{shlex.join([*words, '--speculation', 'off'])}`: nobody gained 2 % on the "
            f"whole; the best was {drafter} ({lane_name(k)}), {best.describe()}."
        )
    words += [] if draft is None else ["--draft", draft]
    words += [] if best.draft_tokens is None else ["--speculation", str(best.draft_tokens)]
    how = " (auto)" if best.draft_tokens is None else ""
    return f"Run `{shlex.join(words)}`{how}: {best.describe()}."


def mean_speed_ups(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Give the geometric mean of every drafter with auto."""
    lanes = _lanes(measurements)
    return {drafter: _mean(lane) for (drafter, k), lane in lanes.items() if k is None}


def _lanes(
    measurements: Sequence[Measurement],
) -> dict[tuple[str, int | None], tuple[Measurement, ...]]:
    """Sort what was measured by drafter and number of drafts, plain decoding left out."""
    lanes: dict[tuple[str, int | None], tuple[Measurement, ...]] = {}
    for m in measurements:
        if m.draft_tokens != 0:
            key = (m.drafter, m.draft_tokens)
            lanes[key] = (*lanes.get(key, ()), m)
    return lanes


def _mean(lane: Sequence[Measurement]) -> float:
    return math.exp(sum(math.log(m.speed_up) for m in lane) / len(lane))


def _is_clearly_faster(lane: Sequence[Measurement], other: Sequence[Measurement]) -> bool:
    """Whether the slowest part of a lane beats the fastest of the other at every point."""
    limits = {_point(m): m.speed_up_spread[1] for m in other}
    if {_point(m) for m in lane} != limits.keys():
        return False
    return all(m.speed_up_spread[0] > limits[_point(m)] for m in lane)


def _point(m: Measurement) -> tuple[str, float, int]:
    return m.workload, m.temperature, m.concurrency


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"
