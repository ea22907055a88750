"""Notes where the tokens of each pass come from, for the requests that want to know.

It asks whoever drafted, weighed and masked, and tells nobody but the outcome. Where no request
wants to know, nothing is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from engine.provenance import PassProvenance
from engine.request import Request
from engine.sampling.grammar_masks import GrammarMasks
from engine.step import ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput

Survival = Callable[[ScheduledRequest, int], list[float] | None]
"""Gives the estimates of a share's first drafts, as they were before the step."""


class PassOrigins:
    """Follows the requests that want to know.

    Args:
        survival: speaks for whoever weighs drafts.
        grammars: say where there was no choice.
        clock: seconds, monotonic; the scheduler's.
    """

    def __init__(
        self,
        survival: Survival,
        grammars: GrammarMasks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._survival = survival
        self._grammars = grammars
        self._clock = clock
        self._told_at: dict[str, float | None] = {}

    def watch(self, request: Request) -> None:
        """Follow a request from now on, if it wants that."""
        if request.wants_provenance:
            self._told_at[request.request_id] = None

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        for request_id in request_ids:
            self._told_at.pop(request_id, None)

    def note(self, scheduled: SchedulerOutput, output: ModelOutput) -> None:
        """Write into the outcomes where their tokens come from, before anybody learns of them."""
        if not self._told_at:
            return
        now = self._clock()
        for share, outcome in zip(scheduled.scheduled, output.outcomes, strict=True):
            if outcome.sampled and share.request.request_id in self._told_at:
                outcome.provenance = self._of(share, outcome, now)

    def _of(self, share: ScheduledRequest, outcome: RequestOutcome, now: float) -> PassProvenance:
        request = share.request
        before = self._told_at[request.request_id] or request.scheduled_time or now
        self._told_at[request.request_id] = now
        num_drafts = outcome.num_draft_tokens
        return PassProvenance(
            now - before,
            list(outcome.draft_token_ids),
            self._survival(share, num_drafts) if num_drafts else None,
            self._grammars.forced_places(request, outcome.sampled),
        )
