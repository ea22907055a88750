"""What lanes did over the steps of a phase, and how soon `auto` was as fast as the phase allows.

Speeds are over `off` at the same tokens of the same requests, so a machine that slows down is left
out of them; rounds are added up. No lanes, no plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import rounded
from benchmarks.side_by_side import Lane, StepNote

RECOVERED = 0.95
"""Of a phase's steady speed; who is as fast has recovered."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One phase of one round.

    Attributes:
        seconds: by lane, when it had the tokens that `auto` had at each step's beginning, and at
            the end of the last.
        notes: what each step of `auto` drafted.
    """

    seconds: dict[str, list[float]]
    notes: list[StepNote]


def trace_of(lanes: Sequence[Lane], auto: Lane) -> Trace:
    """Read lanes that counted from the phase's beginning on."""
    seconds = {
        lane.name: [lane.seconds_at(num_tokens) for num_tokens, _ in auto.marks]
        for lane in lanes
        if lane is not auto
    }
    return Trace({**seconds, auto.name: [mark for _, mark in auto.marks]}, list(auto.notes))


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of all rounds.

    Attributes:
        name: what came in it.
        traces: of the rounds, all of as many steps.
    """

    name: str
    traces: list[Trace]

    @property
    def num_steps(self) -> int:
        """Steps of `auto`."""
        return len(self.traces[0].notes)

    @property
    def steady(self) -> tuple[int, int]:
        """The steps that tell what the phase allows: its last half."""
        return self.num_steps // 2, self.num_steps

    def speed(self, lane: str, steps: tuple[int, int]) -> float:
        """Give how much faster than `off` a lane was over some steps of `auto`."""
        start, end = steps
        off, own = (
            sum(trace.seconds[name][end] - trace.seconds[name][start] for trace in self.traces)
            for name in ("off", lane)
        )
        return off / own

    def expected(self, steps: tuple[int, int]) -> float:
        """Give the mean speed over `off` that the controller expected over some steps."""
        notes = self._notes(steps)
        return sum(note.estimated_speedup for note in notes) / len(notes)

    def drafts(self, drafter: str, steps: tuple[int, int]) -> float:
        """Give the draft tokens of a drafter per request and pass over some steps."""
        notes = self._notes(steps)
        num_passes = sum(note.num_requests for note in notes)
        return sum(note.drafts.get(drafter, 0) for note in notes) / max(1, num_passes)

    @property
    def drafters(self) -> list[str]:
        """Who drafted."""
        notes = self._notes((0, self.num_steps))
        return sorted({name for note in notes for name in note.drafts})

    def windows(self, width: int) -> list[tuple[int, int]]:
        """Give all runs of so many steps."""
        return [(start, start + width) for start in range(self.num_steps - width + 1)]

    def recovered_after(self, width: int) -> int | None:
        """Give the first step from which so many steps are as fast as steady; None = none is."""
        fast = (start for start, _ in self._fast_windows(width))
        return next(fast, None)

    def settled_after(self, width: int) -> int | None:
        """Give the first step from which on no so many steps are slower, up to the last half."""
        fast = {start for start, _ in self._fast_windows(width)}
        border = self.steady[0]
        slow = [start for start, _ in self.windows(width) if start <= border and start not in fast]
        last = max(slow, default=-1)
        return last + 1 if last < border else None

    def _fast_windows(self, width: int) -> list[tuple[int, int]]:
        least = RECOVERED * self.speed("auto", self.steady)
        return [steps for steps in self.windows(width) if self.speed("auto", steps) >= least]

    def _notes(self, steps: tuple[int, int]) -> list[StepNote]:
        return [note for trace in self.traces for note in trace.notes[slice(*steps)]]


def phase_to_json(phase: Phase, lanes: Sequence[str], width: int) -> dict[str, Any]:
    """Give what is written down of a phase, running means included."""
    windows, steady = phase.windows(width), phase.steady
    row = {
        "phase": phase.name,
        "num_steps": phase.num_steps,
        "first_speed": {lane: phase.speed(lane, (0, width)) for lane in lanes},
        "steady_speed": {lane: phase.speed(lane, steady) for lane in lanes},
        "steady_expected": phase.expected(steady),
        "steady_drafts": {name: phase.drafts(name, steady) for name in phase.drafters},
        "recovered_after_steps": phase.recovered_after(width),
        "settled_after_steps": phase.settled_after(width),
        "running_means": {
            "speed": {lane: [phase.speed(lane, steps) for steps in windows] for lane in lanes},
            "expected": [phase.expected(steps) for steps in windows],
            "drafts": {
                name: [phase.drafts(name, steps) for steps in windows] for name in phase.drafters
            },
        },
    }
    return {name: rounded(value) for name, value in row.items()}
