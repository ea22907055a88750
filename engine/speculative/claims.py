"""Weighs drafts that need no model: what their drafters claim, corrected by what came of claims.

Drafts that nobody verified are compared with what was written instead, so a drafter that was not
believed is believed again as soon as it is right; that costs nothing. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.request import Request
from engine.speculative.survival import ClaimedSurvival
from engine.speculative.verifier import Hindsight, count_equal
from engine.step import KnownDraft


@dataclass(frozen=True, slots=True)
class Weighed:
    """A draft and what it is worth.

    Attributes:
        draft: as its drafter gave it.
        survival: for each token, the corrected chance to be accepted with all before it.
        num_expected: tokens expected to be accepted.
    """

    draft: KnownDraft
    survival: list[float]
    num_expected: float


@dataclass(slots=True)
class Claims:
    """What is known of each drafter's word.

    Args:
        hindsight: says what would have become of drafts that nobody verified.
    """

    hindsight: Hindsight = count_equal
    _drafters: dict[str, ClaimedSurvival] = field(default_factory=dict, init=False)
    _unverified: dict[str, tuple[int, list[KnownDraft]]] = field(default_factory=dict, init=False)

    def best(self, said: Sequence[KnownDraft]) -> Weighed | None:
        """Give the draft that promises most; None where nobody says anything."""
        best: Weighed | None = None
        for draft in said:
            survival = self.survival(draft)
            num_expected = sum(survival)
            if best is None or num_expected > best.num_expected:
                best = Weighed(draft, survival, num_expected)
        return best

    def survival(self, draft: KnownDraft) -> list[float]:
        """Give for each token of a draft the corrected chance to be accepted with all before it."""
        return self._of(draft.drafter).survival(draft.survival)

    def observe(self, known: KnownDraft, num_verified: int, num_accepted: int) -> None:
        """Learn from a draft that was verified."""
        self._of(known.drafter).observe(known.survival[:num_verified], num_accepted)

    def watch(
        self, request: Request, said: Sequence[KnownDraft], verified: KnownDraft | None
    ) -> None:
        """Compare what was said last time with what was written, and note what is said now.

        Args:
            request: of whom it was said.
            said: drafts for the next tokens.
            verified: the one among them that the target will judge, by its drafter.
        """
        earlier = self._unverified.pop(request.request_id, None)
        if earlier is not None:
            start, missed = earlier
            num_written = request.num_tokens - start
            for known in missed:
                num_right = self.hindsight(request, start, known.token_ids[:num_written])
                self.observe(known, num_written, num_right)
        rest = [d for d in said if verified is None or d.drafter != verified.drafter]
        if rest:
            self._unverified[request.request_id] = (request.num_tokens, rest)

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        for request_id in request_ids:
            self._unverified.pop(request_id, None)

    def _of(self, drafter: str) -> ClaimedSurvival:
        known = self._drafters.get(drafter)
        if known is None:
            known = self._drafters[drafter] = ClaimedSurvival()
        return known
