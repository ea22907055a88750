"""Drafts that need no model: who is asked, and what they say of a request's next tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.config import TOKEN_DRAFTERS, SpeculationConfig
from engine.draft_planner import MAX_KNOWN_DRAFT_TOKENS
from engine.request import Request
from engine.speculative.drafter_faults import DrafterFaults
from engine.speculative.token_drafters import (
    ForcedTokens,
    GrammarDrafter,
    NgramDrafter,
    PredictionDrafter,
    SuffixDrafter,
    TokenDrafter,
)
from engine.step import KnownDraft

_LOOKUPS: dict[str, type[NgramDrafter | SuffixDrafter]] = {
    drafter.name: drafter for drafter in (NgramDrafter, SuffixDrafter)
}
assert set(_LOOKUPS) == set(TOKEN_DRAFTERS), "each drafter that can be named exists"


class KnownTokens:
    """Asks for each request what is known of its next tokens.

    Grammars and predictions speak of this one request and are always asked; drafters that look
    things up are asked where the settings name them. Where a grammar speaks, it is right.

    Args:
        config: who drafts, and how much.
        forced_tokens: speaks for grammars.
        faults: hears of drafters that fail, which are not asked again; None = a list of our own.
    """

    def __init__(
        self,
        config: SpeculationConfig,
        forced_tokens: ForcedTokens,
        faults: DrafterFaults | None = None,
    ) -> None:
        self._faults = faults or DrafterFaults()
        self._grammar = GrammarDrafter(forced_tokens)
        self._prediction = PredictionDrafter()
        self._lookups: list[TokenDrafter] = [
            _LOOKUPS[name]() for name in config.drafters if name in _LOOKUPS
        ]
        self._num_lookup_tokens = (
            MAX_KNOWN_DRAFT_TOKENS if config.is_auto else config.num_draft_tokens
        )
        self._seconds: dict[str, float] = {}

    def next(self, request: Request, limit: int) -> list[KnownDraft]:
        """Give what is said of the next tokens; see `engine.step.KnownDrafts`."""
        if not self.reads_tokens_of(request):
            return []
        forced = self._ask(self._grammar, request, limit)
        if forced is not None:
            return [forced]
        said = [self._ask(self._prediction, request, limit)]
        most = min(limit, self._num_lookup_tokens)
        said += [self._ask(drafter, request, most) for drafter in self._lookups]
        return [known for known in said if known is not None]

    def reads_tokens_of(self, request: Request) -> bool:
        """Whether anybody could say something of a request."""
        params = request.params
        return bool(self._lookups or params.structured_output or params.predicted_token_ids)

    def take_seconds(self) -> dict[str, float]:
        """Give the time since the last call that finding drafts took, by who found them."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def evict(self, request_ids: Sequence[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        drafters: list[TokenDrafter] = [self._grammar, self._prediction, *self._lookups]
        for drafter in drafters:
            with self._faults.watching(drafter.name):
                drafter.evict(request_ids)

    def _ask(self, drafter: TokenDrafter, request: Request, limit: int) -> KnownDraft | None:
        if self._faults.is_off(drafter.name):
            return None
        started = time.perf_counter()
        known = None
        with self._faults.watching(drafter.name):
            known = drafter.draft(request, limit)
        if known is not None:
            spent = self._seconds.get(known.drafter, 0.0) + time.perf_counter() - started
            self._seconds[known.drafter] = spent
        return known
