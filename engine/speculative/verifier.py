"""Sampled verify: walk the drafts while they equal what the target itself sampled.

Knows token ids only: no logits, no probabilities, no drafter. Every emitted token is one that the
plain sampler gave on the target's logits, so the walk cannot change what is written, whoever
drafted and however many (Daliri et al. 2024, 2408.07978, for drafters that share the noise).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from engine.request import Request


@dataclass(slots=True)
class Verification:
    """What a verify pass emits.

    Attributes:
        num_accepted: leading drafts that equal the target's samples, per request.
        emitted: accepted drafts and then the target's own token, per request.
    """

    num_accepted: list[int]
    emitted: list[list[int]]


Verifier = Callable[[torch.Tensor, torch.Tensor, Sequence[int], Sequence[Request]], Verification]
"""Says what a pass emits: `verify`, given the requests too, or what stands in its place."""

Hindsight = Callable[[Request, int, Sequence[int]], int]
"""Says of tokens that could have been drafted from a position of a request, and were not, how many
would have been accepted; what was written there since is among the request's tokens."""


def verify(
    sampled: torch.Tensor, draft_token_ids: torch.Tensor, num_draft_tokens: Sequence[int]
) -> Verification:
    """Accept the drafts that the target sampled too, and emit its own token after them.

    Args:
        sampled: `[num_rows]`, int64, as the sampler gave them for `Rows.ragged(num_draft_tokens)`.
        draft_token_ids: `[num_requests, max_draft_tokens]`, int64.
        num_draft_tokens: drafts per request, known on the host.
    """
    if sampled.device.type != "cpu":
        return verify_on_device(sampled, draft_token_ids, num_draft_tokens)
    drafts = draft_token_ids.tolist()
    return walk(sampled.tolist(), [drafts[i][:count] for i, count in enumerate(num_draft_tokens)])


def verify_on_device(
    sampled: torch.Tensor, draft_token_ids: torch.Tensor, num_draft_tokens: Sequence[int]
) -> Verification:
    """`verify` that compares on the device and waits for it once; arguments as there."""
    counts = torch.tensor(num_draft_tokens, dtype=torch.int64).to(sampled.device)
    num_accepted = count_accepted(sampled, draft_token_ids, counts)
    both = torch.cat([sampled, num_accepted]).tolist()
    samples, accepted = both[: len(sampled)], both[len(sampled) :]
    starts = [0, *accumulate(count + 1 for count in num_draft_tokens)]
    emitted = [samples[s : s + n + 1] for s, n in zip(starts, accepted, strict=False)]
    return Verification(accepted, emitted)


def walk(sampled: Sequence[int], drafts: Sequence[Sequence[int]]) -> Verification:
    """Verify request by request, in plain Python.

    Args:
        sampled: the target's samples, `len(draft) + 1` per request, one request after the other.
        drafts: the draft tokens of each request, possibly none.
    """
    result = Verification([], [])
    start = 0
    for draft in drafts:
        samples = list(sampled[start : start + len(draft) + 1])
        accepted = 0
        while accepted < len(draft) and draft[accepted] == samples[accepted]:
            accepted += 1
        result.num_accepted.append(accepted)
        result.emitted.append(samples[: accepted + 1])
        start += len(samples)
    return result


def count_equal(request: Request, start: int, token_ids: Sequence[int]) -> int:
    """Count the leading tokens that equal what was written from `start` on; see `Hindsight`."""
    written = request.token_ids[start : start + len(token_ids)]
    pairs = enumerate(zip(token_ids, written, strict=False))
    return next((n for n, (guess, token_id) in pairs if guess != token_id), len(written))


def count_accepted(
    sampled: torch.Tensor, draft_token_ids: torch.Tensor, num_draft_tokens: torch.Tensor
) -> torch.Tensor:
    """Count the leading drafts that equal the target's samples, without leaving the device.

    Args:
        sampled: `[num_rows]`, int64; request i has `num_draft_tokens[i] + 1` rows, in order.
        draft_token_ids: `[num_requests, max_draft_tokens]`, int64; entries past a request's count
            are not looked at.
        num_draft_tokens: `[num_requests]`, int64.

    Returns:
        `[num_requests]`, int64.
    """
    num_requests, width = draft_token_ids.shape
    if width == 0 or num_requests == 0:
        return torch.zeros(num_requests, dtype=torch.int64, device=sampled.device)
    starts = (num_draft_tokens + 1).cumsum(0) - num_draft_tokens - 1
    column = torch.arange(width, device=sampled.device)
    is_draft = column < num_draft_tokens[:, None]  # [num_requests, width]
    rows = torch.where(is_draft, starts[:, None] + column, 0)
    matches = is_draft & (sampled[rows] == draft_token_ids)
    return matches.cumprod(dim=1).sum(dim=1)
