"""Joins drafters of every kind into one: each request is drafted by whom its plan names.

A plan weighs drafters by what they are expected to bring minus what they cost, request by request
and step by step (`engine/speculative/controller.py`; with a fixed number of drafts
`engine/draft_planner.py`). What needs no model comes with the schedule; the rest is the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from engine.request import DRAFT_MODEL
from engine.sampling.sampling_batch import SamplingBatch
from engine.speculative.drafter_faults import DrafterFaults
from engine.speculative.proposer import Draft, NoProposer, Proposer
from engine.step import ScheduledRequest, SchedulerOutput


class Arbiter:
    """A drafter made of drafters.

    Args:
        model: drafts where the plan leaves it to a model.
        device: where drafts go.
        noise_seconds: tells the time spent drawing noise so far.
        faults: hears of errors of the model's drafter, which is not asked again; None = a list of
            our own.

    Attributes:
        noise_seconds: of the last step's drafting, time for noise that the target reads too.
    """

    def __init__(
        self,
        model: Proposer,
        device: torch.device,
        noise_seconds: Callable[[], float],
        faults: DrafterFaults | None = None,
    ) -> None:
        self._model = model
        self._nobody = NoProposer(device)
        self._faults = faults or DrafterFaults()
        self._device = device
        self._count_noise = noise_seconds
        self.noise_seconds = 0.0

    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Draft; see `Proposer.propose`."""
        before = self._count_noise()
        draft = self._propose(scheduled, sampling)
        self.noise_seconds = self._count_noise() - before
        return draft

    def _propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        shares = scheduled.scheduled
        if all(share.known_draft is None for share in shares):
            return self._ask_model(scheduled, sampling)
        others = SchedulerOutput([_without_known(share) for share in shares], scheduled.preempted)
        draft = self._ask_model(others, sampling)
        counts = [
            num_drafts if share.known_draft is None else share.num_draft_tokens
            for share, num_drafts in zip(shares, draft.num_draft_tokens, strict=True)
        ]
        sampled = [share for share in shares if share.samples]
        return Draft(self._merge(sampled, draft.token_ids), counts, draft.num_computed_tokens)

    def _ask_model(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Let the model draft, unless it failed at that."""
        if not self._faults.is_off(DRAFT_MODEL):
            with self._faults.watching(DRAFT_MODEL):
                return self._model.propose(scheduled, sampling)
        return self._nobody.propose(scheduled, sampling)

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
