"""Drafts that need no model: who is asked first, and how they join the drafts of a model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from engine.config import TOKEN_DRAFTERS, SpeculationConfig
from engine.request import Request
from engine.sampling.sampling_batch import SamplingBatch
from engine.speculative.proposer import Draft, Proposer
from engine.speculative.token_drafters import (
    ForcedTokens,
    GrammarDrafter,
    NgramDrafter,
    PredictionDrafter,
    SuffixDrafter,
    TokenDrafter,
)
from engine.step import KnownDraft, ScheduledRequest, SchedulerOutput

_LOOKUPS: dict[str, type[NgramDrafter | SuffixDrafter]] = {
    drafter.name: drafter for drafter in (NgramDrafter, SuffixDrafter)
}
assert set(_LOOKUPS) == set(TOKEN_DRAFTERS), "each drafter that can be named exists"


class KnownTokens:
    """Asks for each request what is known of its next tokens.

    Grammars and predictions speak of this one request and are always asked; drafters that look
    things up are asked where the settings name them.

    Args:
        config: who drafts, and how much.
        forced_tokens: speaks for grammars.
    """

    def __init__(self, config: SpeculationConfig, forced_tokens: ForcedTokens) -> None:
        self._sure: list[TokenDrafter] = [GrammarDrafter(forced_tokens), PredictionDrafter()]
        self._lookups: list[TokenDrafter] = [
            _LOOKUPS[name]() for name in config.drafters if name in _LOOKUPS
        ]
        self._num_lookup_tokens = config.num_draft_tokens
        self._seconds: dict[str, float] = {}

    def next(self, request: Request, limit: int) -> KnownDraft | None:
        """Give the next tokens as far as they are known; see `engine.step.KnownDrafts`."""
        started = time.perf_counter()
        known = self._ask(request, limit)
        if known is not None:
            spent = self._seconds.get(known.drafter, 0.0) + time.perf_counter() - started
            self._seconds[known.drafter] = spent
        return known

    def take_seconds(self) -> dict[str, float]:
        """Give the time since the last call that finding drafts took, by who found them."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def evict(self, request_ids: Sequence[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        for drafter in (*self._sure, *self._lookups):
            drafter.evict(request_ids)

    def _ask(self, request: Request, limit: int) -> KnownDraft | None:
        for drafters, most in (
            (self._sure, limit),
            (self._lookups, min(limit, self._num_lookup_tokens)),
        ):
            for drafter in drafters:
                known = drafter.draft(request, most)
                if known is not None:
                    return known
        return None


class KnownTokensProposer:
    """Passes on the drafts that came with the schedule, and leaves the others to a drafter.

    Args:
        inner: drafts where nothing is known.
        device: where drafts go.
    """

    def __init__(self, inner: Proposer, device: torch.device) -> None:
        self._inner = inner
        self._device = device

    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Draft; see `Proposer.propose`."""
        shares = scheduled.scheduled
        if all(share.known_draft is None for share in shares):
            return self._inner.propose(scheduled, sampling)
        others = SchedulerOutput([_without_known(share) for share in shares], scheduled.preempted)
        draft = self._inner.propose(others, sampling)
        counts = [
            num_drafts if share.known_draft is None else share.num_draft_tokens
            for share, num_drafts in zip(shares, draft.num_draft_tokens, strict=True)
        ]
        sampled = [share for share in shares if share.samples]
        return Draft(self._merge(sampled, draft.token_ids), counts, draft.num_computed_tokens)

    def _merge(self, shares: Iterable[ScheduledRequest], drafted: torch.Tensor) -> torch.Tensor:
        """Put known drafts into the rows of those who have them, beside what was drafted."""
        known = [
            [] if share.known_draft is None else share.known_draft.token_ids for share in shares
        ]
        width = max(drafted.shape[1], *map(len, known))
        token_ids = torch.zeros(len(known), width, dtype=torch.int64)
        for row, row_ids in enumerate(known):
            token_ids[row, : len(row_ids)] = torch.tensor(row_ids, dtype=torch.int64)
        merged = token_ids.to(self._device)
        rows = [row for row, row_ids in enumerate(known) if not row_ids]
        merged[rows, : drafted.shape[1]] = drafted[rows]
        return merged


def _without_known(share: ScheduledRequest) -> ScheduledRequest:
    if share.known_draft is None:
        return share
    return ScheduledRequest(
        request=share.request,
        num_tokens=share.num_tokens,
        num_draft_tokens=0,
        num_catch_up_tokens=share.num_catch_up_tokens,
        block_ids=share.block_ids,
    )
