"""Shares out what each step took: among its requests, and among those who drafted; no torch.

Drafting goes to the requests that were drafted for, by their draft tokens; what else the draft
model computed, and drafting that came to nothing, to all by their known tokens. The target's pass
goes to all by their rows, and everything else in equal parts. What requests are told adds up to
the totals. A few additions per request and step, nothing per token.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.metrics import DrafterSeconds, EngineStats
from engine.request import DRAFT_MODEL, PassReport, RequestDelta
from engine.step import ModelOutput, SchedulerOutput


@dataclass(frozen=True, slots=True)
class Planning:
    """What a step's planning took and promised; nothing, where there was nobody to plan for.

    Attributes:
        seconds: time spent, look-ups included.
        lookup_seconds: of these, on drafts that were found, by who found them.
        estimated_speedup: expected of the plan, where a controller weighed it.
    """

    seconds: float = 0.0
    lookup_seconds: Mapping[str, float] = field(default_factory=dict)
    estimated_speedup: float | None = None


class StepClock:
    """Measures a step's parts; it starts when it is made.

    Attributes:
        draft_seconds: time spent proposing.
        target_seconds: time spent in the target's pass, sampling included.
    """

    def __init__(self) -> None:
        self.draft_seconds = 0.0
        self.target_seconds = 0.0
        self._started = self._mark = time.perf_counter()

    def start_draft(self) -> None:
        """Say that proposing begins."""
        self._mark = time.perf_counter()

    def start_target(self) -> None:
        """Say that the target's pass begins, right behind proposing."""
        now = time.perf_counter()
        self.draft_seconds, self._mark = now - self._mark, now

    def end_target(self) -> None:
        """Say that the target's pass is over."""
        self.target_seconds = time.perf_counter() - self._mark

    def take(self, draft_seconds: float, target_seconds: float) -> None:
        """Take over what a device measured of a step that it ran by itself."""
        self.draft_seconds, self.target_seconds = draft_seconds, target_seconds

    @property
    def seconds(self) -> float:
        """Give all of it so far."""
        return self.draft_seconds + self.target_seconds + self.overhead_seconds

    @property
    def overhead_seconds(self) -> float:
        """Give the time since the start that was neither of both; none where a device ran ahead."""
        since = time.perf_counter() - self._started
        return max(0.0, since - self.draft_seconds - self.target_seconds)


class StepLedger:
    """Keeps the engine's totals, and what each request has not been told yet.

    Args:
        stats: the totals.
    """

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats
        self._untold: dict[str, tuple[float, float, float]] = {}

    def book(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        deltas: Sequence[RequestDelta],
        clock: StepClock,
        planning: Planning,
    ) -> None:
        """Count a step, and write into its deltas what their requests' steps took.

        Args:
            scheduled: the step.
            output: what came of it.
            deltas: what is said of it.
            clock: measured it.
            planning: of its drafts.
        """
        stats, lookups = self._stats, planning.lookup_seconds
        found_seconds = sum(lookups.values())
        total = PassReport(
            clock.draft_seconds + found_seconds,
            clock.target_seconds,
            clock.overhead_seconds - found_seconds,
            planning.estimated_speedup,
        )
        stats.num_steps += 1
        stats.controller_seconds += planning.seconds - found_seconds
        stats.speculation.observe_report(total)
        count_step(stats, scheduled, output)
        self._share(scheduled, output, total, {DRAFT_MODEL: clock.draft_seconds, **lookups})
        for delta in deltas:
            untold = self._untold.pop(delta.request_id, None)
            if untold is not None:
                delta.report = PassReport(*untold, planning.estimated_speedup)
        # One that was given up while the step was under way is told nothing of it.
        self.forget(s.request.request_id for s in scheduled.scheduled if s.request.is_finished)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what nobody will be told; unknown ids are fine."""
        for request_id in request_ids:
            self._untold.pop(request_id, None)

    def _share(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        total: PassReport,
        draft_seconds: Mapping[str, float],
    ) -> None:
        shares, outcomes = scheduled.scheduled, output.outcomes
        num_drafted: dict[str, int] = {}
        num_known = 0
        for share, outcome in zip(shares, outcomes, strict=True):
            num_known += share.num_tokens
            if outcome.num_draft_tokens:
                drafter = share.drafter
                num_drafted[drafter] = num_drafted.get(drafter, 0) + outcome.num_draft_tokens
        per_row = total.verify_seconds / (num_known + sum(num_drafted.values()))
        per_draft = {name: draft_seconds.get(name, 0.0) / n for name, n in num_drafted.items()}
        nobodys = sum(s for name, s in draft_seconds.items() if name not in num_drafted)
        per_known = nobodys / num_known
        overhead = total.overhead_seconds / len(shares)
        for name, count in num_drafted.items():
            own = self._stats.drafter_seconds.setdefault(name, DrafterSeconds())
            own.draft += draft_seconds.get(name, 0.0)
            own.verify += per_row * count
        for share, outcome in zip(shares, outcomes, strict=True):
            num_drafts = outcome.num_draft_tokens
            drafting = per_known * share.num_tokens
            if num_drafts:
                drafting += per_draft[share.drafter] * num_drafts
            verifying = per_row * (share.num_tokens + num_drafts)
            self._add(share.request.request_id, drafting, verifying, overhead)

    def _add(self, request_id: str, drafting: float, verifying: float, overhead: float) -> None:
        before = self._untold.get(request_id)
        if before is not None:
            drafting += before[0]
            verifying += before[1]
            overhead += before[2]
        self._untold[request_id] = (drafting, verifying, overhead)


def count_step(stats: EngineStats, scheduled: SchedulerOutput, output: ModelOutput) -> None:
    """Count how much a step computed, and what it drafted and emitted, in all and by drafter."""
    num_tokens = 0
    for share, outcome in zip(scheduled.scheduled, output.outcomes, strict=True):
        num_tokens += share.num_tokens + outcome.num_draft_tokens
        if outcome.sampled:
            stats.speculation.observe(
                outcome.num_draft_tokens,
                outcome.num_accepted_tokens,
                len(outcome.sampled),
                share.drafter,
            )
    stats.step_requests.observe(len(scheduled.scheduled))
    stats.step_tokens.observe(num_tokens)
