"""Who drafts: the interface that every drafter answers to, and the drafter that never drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.sampling.sampling_batch import SamplingBatch
from engine.step import SchedulerOutput


@dataclass(slots=True)
class Draft:
    """Chains of draft tokens, on the device.

    Attributes:
        token_ids: [num_sampling, max_draft_tokens], int64; one row per request that samples in
            this step, in schedule order, padded on the right with 0.
        num_draft_tokens: drafts of each scheduled request, at most what was scheduled.
        num_computed_tokens: tokens of each scheduled request whose draft keys and values are in
            the cache afterwards, drafts counted as if accepted.
    """

    token_ids: torch.Tensor
    num_draft_tokens: list[int]
    num_computed_tokens: list[int]


class Proposer(Protocol):
    """Proposes the next tokens of the requests of a step."""

    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Draft up to `num_draft_tokens` for each scheduled request.

        Args:
            scheduled: the step; a drafter with keys and values of its own computes them for
                the step's tokens here, prompt chunks included.
            sampling: parameters and noise of the requests that sample, in schedule order.
        """
        ...


class NoProposer:
    """No speculation: zero drafts, at no cost."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Return empty drafts."""
        shares = scheduled.scheduled
        num_sampling = sum(share.samples for share in shares)
        nothing = torch.zeros(num_sampling, 0, dtype=torch.int64, device=self._device)
        return Draft(nothing, [0] * len(shares), [0] * len(shares))
