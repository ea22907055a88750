"""How the requests of a decode loop sample, on the device: a row per request slot.

It holds what `kernels/gumbel_sample.py` reads, for requests whose sampling needs nothing else of
the host while they decode. Who sits in which slot is the loop's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.request import Request
from engine.runner.device_queue import DeviceQueue
from engine.sampling_params import SamplingParams
from kernels.commit import OutputCounts
from kernels.decode_state import DecodeState
from kernels.gumbel_sample import SampleRows

_NUM_FLOATS = 6
_NUM_INTEGERS = 4


@dataclass(frozen=True, slots=True)
class SamplingTraits:
    """What has to be done for at least one request of a batch.

    Attributes:
        has_noise: somebody does not take the most likely token.
        has_filters: top-k, top-p or min-p drop tokens.
        has_penalties: tokens count that came before.
    """

    has_noise: bool = False
    has_filters: bool = False
    has_penalties: bool = False

    @classmethod
    def of(cls, requests: Iterable[Request]) -> SamplingTraits:
        """Give the traits of a batch."""
        params = [request.params for request in requests]
        sampled = [p for p in params if not p.is_greedy]
        return cls(
            has_noise=bool(sampled),
            has_filters=any(p.has_filters for p in sampled),
            has_penalties=any(p.has_penalties for p in params),
        )


def can_sample(request: Request) -> bool:
    """Whether nothing of the host is needed to sample a request's next tokens."""
    params = request.params
    return (
        params.logprobs is None
        and params.structured_output is None
        and not params.bad_words_token_ids
        and not params.logit_bias
        and params.allowed_token_ids is None
        and not request.lacks_prompt_logprobs
        and request.num_output_tokens >= params.min_tokens
    )


class SamplingState:
    """Sampling settings by slot.

    Args:
        num_slots: slots, the scratch slot included, which stays greedy.
        vocab_size: of the target.
        device: where the settings live.
        queue: where changes are handed to the device.
    """

    def __init__(
        self, num_slots: int, vocab_size: int, device: torch.device, queue: DeviceQueue
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._queue = queue
        self._floats = torch.zeros(_NUM_FLOATS, num_slots, dtype=torch.float32, device=device)
        self._floats[1:4] = 1.0  # top_p 1, no min_p below, repetition 1
        self._floats[2] = 0.0
        self._seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._small = torch.zeros(_NUM_INTEGERS - 1, num_slots, dtype=torch.int32, device=device)
        self._small[2] = -1
        self._in_prompt: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    @property
    def seeds(self) -> torch.Tensor:
        """The 64 bits of each slot's seed: [num_slots] int64."""
        return self._seeds

    @property
    def choices(self) -> torch.Tensor:
        """Which of a prompt's answers each slot is: [num_slots] int32."""
        return self._small[1]

    @property
    def output_counts(self) -> OutputCounts:
        """How often penalised requests have written each token."""
        assert self._counts is not None, "somebody is penalised"
        return OutputCounts(self._counts, self._small[2])

    def enter(self, requests: Sequence[Request], slots: Sequence[int]) -> None:
        """Hand the settings of some slots' requests to the device."""
        floats = np.array([_floats_of(request.params) for request in requests], dtype=np.float32)
        integers = np.array(
            [_integers_of(request, slot) for request, slot in zip(requests, slots, strict=True)],
            dtype=np.int64,
        )
        staged_floats = self._queue.stage(floats.T.copy())
        staged = self._queue.stage(np.vstack([integers.T, np.array(slots, dtype=np.int64)]))

        def write() -> None:
            rows = staged.to(self._device, non_blocking=True)
            index = rows[-1]
            self._floats[:, index] = staged_floats.to(self._device, non_blocking=True)
            self._seeds[index] = rows[0]
            self._small[:, index] = rows[1:_NUM_INTEGERS].int()

        self._queue.submit(write)
        for request, slot in zip(requests, slots, strict=True):
            if request.params.has_penalties:
                self._count(request, slot)

    def rows(
        self,
        state: DecodeState,
        slots: torch.Tensor,
        offsets: torch.Tensor,
        traits: SamplingTraits,
        vocab_size: int,
    ) -> SampleRows:
        """Describe rows to the sampler.

        Args:
            state: says how many tokens precede.
            slots: [num_rows] int32.
            offsets: [num_rows] int32, drafts in front of each sampled token.
            traits: what has to be done for any of them.
            vocab_size: tokens that can be chosen.
        """
        temperature, top_p, min_p, repetition, presence, frequency = self._floats
        return SampleRows(
            slots=slots,
            offsets=offsets,
            num_tokens=state.num_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            top_k=self._small[0],
            seed=self._seeds,
            choice=self._small[1],
            vocab_size=vocab_size,
            has_noise=traits.has_noise,
            has_filters=traits.has_filters,
            repetition=repetition if traits.has_penalties else None,
            presence=presence if traits.has_penalties else None,
            frequency=frequency if traits.has_penalties else None,
            penalty_row=self._small[2] if traits.has_penalties else None,
            in_prompt=self._in_prompt if traits.has_penalties else None,
            output_counts=self._counts if traits.has_penalties else None,
            draft_token_ids=state.draft_tokens if traits.has_penalties else None,
        )

    def _count(self, request: Request, slot: int) -> None:
        """Count a penalised request's tokens; its slot is its row, too."""
        if self._counts is None:
            shape = (self._seeds.shape[0], self._vocab_size)
            self._counts = torch.zeros(shape, dtype=torch.float32, device=self._device)
            self._in_prompt = torch.zeros_like(self._counts)
        in_prompt, counts = self._in_prompt, self._counts
        assert in_prompt is not None, "both are made together"
        prompt = self._queue.stage(np.array(request.prompt_token_ids, dtype=np.int64))
        written = request.token_ids[request.num_prompt_tokens :]
        answer = self._queue.stage(np.array(written, dtype=np.int64))

        def write() -> None:
            in_prompt[slot] = 0.0
            in_prompt[slot, prompt.to(self._device, non_blocking=True)] = 1.0
            token_ids = answer.to(self._device, non_blocking=True)
            ones = torch.ones(token_ids.shape, dtype=torch.float32, device=self._device)
            counts[slot] = 0.0
            counts[slot].index_put_((token_ids,), ones, accumulate=True)

        self._queue.submit(write)


def _floats_of(params: SamplingParams) -> tuple[float, ...]:
    return (
        params.temperature,
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
    )


def _integers_of(request: Request, slot: int) -> tuple[int, ...]:
    params = request.params
    assert params.seed is not None, "the engine's door draws a seed"
    # The bits of an unsigned seed, as int64 has them.
    seed = params.seed - 2**64 if params.seed >= 2**63 else params.seed
    return seed, params.top_k, request.choice_index, slot if params.has_penalties else -1
