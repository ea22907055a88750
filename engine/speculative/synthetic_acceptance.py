"""Drafts accepted by the dice instead of by the target: a switch for benchmarks.

It separates what an engine costs from how good its drafts are. A draft counts as accepted by a draw
that depends on nothing but (seed, choice, position), at a rate given for its place in the draft;
accepted drafts are written as drafted, the target's own token behind them. So what is written is
not the target's, and whoever turns this on has to say so. Knows token ids and positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from engine.request import Request
from engine.sampling.noise import uniform_draws
from engine.speculative.verifier import Verification

# Positions drawn at once: a call costs the same for one as for so many.
_SPAN = 128


class SyntheticAcceptance:
    """Stands in the place of `verify`, at given rates.

    Args:
        rates: for each place in a draft, the chance that it is accepted if all before it were; the
            last holds for all places beyond.

    Attributes:
        rates: the same; they may change between steps.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        assert rates, "without rates, drafts are verified"
        self.rates = rates

    def verify(
        self,
        sampled: torch.Tensor,
        draft_token_ids: torch.Tensor,
        num_draft_tokens: Sequence[int],
        requests: Sequence[Request],
    ) -> Verification:
        """Accept drafts by their draws, and emit the target's own token after them.

        Args:
            sampled: see `engine.speculative.verifier.verify`, as the next two.
            draft_token_ids: `[num_requests, max_draft_tokens]`, int64.
            num_draft_tokens: drafts per request.
            requests: whose drafts they are, without them.
        """
        # One copy from the device, not two.
        both = torch.cat([sampled, draft_token_ids.flatten()]).tolist()
        row, first_draft, width = 0, len(sampled), draft_token_ids.shape[1]
        result = Verification([], [])
        for request, num_drafts in zip(requests, num_draft_tokens, strict=True):
            accepted = self._num_accepted(request, request.num_tokens, num_drafts)
            drafts = both[first_draft : first_draft + accepted]
            result.num_accepted.append(accepted)
            result.emitted.append([*drafts, both[row + accepted]])
            row += num_drafts + 1
            first_draft += width
        return result

    def hindsight(self, request: Request, start: int, token_ids: Sequence[int]) -> int:
        """Count what would have been accepted; see `engine.speculative.verifier.Hindsight`."""
        return self._num_accepted(request, start, len(token_ids))

    def _num_accepted(self, request: Request, start: int, num_drafts: int) -> int:
        last = len(self.rates) - 1
        for place in range(num_drafts):
            if _draw(request, start + place) >= self.rates[min(place, last)]:
                return place
        return num_drafts


def _draw(request: Request, position: int) -> float:
    seed = request.params.seed
    assert seed is not None, "the engine's door draws a seed"
    return _draws(seed, request.choice_index, position // _SPAN)[position % _SPAN]


@lru_cache(maxsize=1024)
def _draws(seed: int, choice: int, span: int) -> list[float]:
    positions = range(span * _SPAN, (span + 1) * _SPAN)
    draws: list[float] = uniform_draws([seed] * _SPAN, [choice] * _SPAN, positions).tolist()
    return draws
