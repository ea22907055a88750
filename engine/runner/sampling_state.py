"""How the requests of a decode loop sample, on the device: a row per request slot.

It holds what `kernels/gumbel_sample.py` reads, for requests whose sampling needs nothing else of
the host while they decode. Who sits in which slot is the loop's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.request import Request
from engine.runner.device_queue import DeviceQueue
from engine.sampling.request_state import build_bias, has_bias
from engine.sampling_params import SamplingParams
from kernels.decode_state import DecodeState, OutputCounts
from kernels.sample_rows import SampleRows

# Rows of the packed settings.
_FLOATS = ("temperature", "min_p", "repetition_excess", "presence", "frequency")
_SMALL = ("top_k", "choice", "penalty_row", "bias_row")
_NO_ROW = -1


@dataclass(frozen=True, slots=True)
class SamplingTraits:
    """What has to be done for at least one request of a batch.

    Attributes:
        has_noise: somebody does not take the most likely token.
        has_filters: top-k, top-p or min-p drop tokens.
        has_penalties: tokens count that came before.
        has_biases: tokens are banned or biased whatever came before.
    """

    has_noise: bool = False
    has_filters: bool = False
    has_penalties: bool = False
    has_biases: bool = False

    @classmethod
    def of(cls, requests: Iterable[Request]) -> SamplingTraits:
        """Give the traits of a batch."""
        params = [request.params for request in requests]
        sampled = [p for p in params if not p.is_greedy]
        return cls(
            has_noise=bool(sampled),
            has_filters=any(p.has_filters for p in sampled),
            has_penalties=any(p.has_penalties for p in params),
            has_biases=any(map(has_bias, params)),
        )


def can_sample(request: Request) -> bool:
    """Whether nothing of the host is needed to sample a request's next tokens."""
    params = request.params
    return (
        params.logprobs is None
        and params.structured_output is None
        and all(len(word) == 1 for word in params.bad_words_token_ids)
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
        self._floats = torch.zeros(len(_FLOATS), num_slots, dtype=torch.float32, device=device)
        self._top_p = torch.ones(num_slots, dtype=torch.float64, device=device)
        self._seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._choices = torch.zeros_like(self._seeds)
        self._small = torch.zeros(len(_SMALL), num_slots, dtype=torch.int32, device=device)
        self._small[2:] = _NO_ROW
        self._in_prompt: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        self._biases: torch.Tensor | None = None

    @property
    def seeds(self) -> torch.Tensor:
        """The 64 bits of each slot's seed: [num_slots] int64."""
        return self._seeds

    @property
    def choices(self) -> torch.Tensor:
        """Which of a prompt's answers each slot is: [num_slots] int64."""
        return self._choices

    @property
    def output_counts(self) -> OutputCounts:
        """How often penalised requests have written each token."""
        assert self._counts is not None, "somebody is penalised"
        return OutputCounts(self._counts, self._small[2])

    def enter(self, requests: Sequence[Request], slots: Sequence[int]) -> None:
        """Hand the settings of some slots' requests to the device."""
        params = [request.params for request in requests]
        floats = np.array([_floats_of(own) for own in params], dtype=np.float32)
        top_ps = np.array([own.top_p for own in params], dtype=np.float64)
        integers = np.array(
            [_integers_of(*pair) for pair in zip(requests, slots, strict=True)], dtype=np.int64
        )
        staged_floats = self._queue.stage(floats.T.copy())
        staged_top_ps = self._queue.stage(top_ps)
        staged = self._queue.stage(integers.T.copy())

        def write() -> None:
            rows = staged.to(self._device, non_blocking=True)
            index = rows[0]
            self._seeds[index] = rows[1]
            self._choices[index] = rows[3]
            self._small[:, index] = rows[2:].int()
            self._floats[:, index] = staged_floats.to(self._device, non_blocking=True)
            self._top_p[index] = staged_top_ps.to(self._device, non_blocking=True)

        self._queue.submit(write)
        for request, slot in zip(requests, slots, strict=True):
            if request.params.has_penalties:
                self._count(request, slot)
            if has_bias(request.params):
                self._bias(request, slot)

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
        temperature, min_p, repetition_excess, presence, frequency = self._floats
        top_k, choice, penalty_row, bias_row = self._small
        rows = SampleRows(
            vocab_size=vocab_size,
            has_noise=traits.has_noise,
            has_filters=traits.has_filters,
            slots=slots,
            offsets=offsets,
            num_tokens=state.num_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=self._top_p,
            min_p=min_p,
            seed=self._seeds,
            choice=choice,
        )
        if traits.has_penalties:
            rows = replace(
                rows,
                penalty_row=penalty_row,
                repetition_excess=repetition_excess,
                presence=presence,
                frequency=frequency,
                in_prompt=self._in_prompt,
                output_counts=self._counts,
                draft_token_ids=state.draft_tokens,
            )
        if traits.has_biases:
            rows = replace(rows, bias_row=bias_row, biases=self._biases)
        return rows

    def _count(self, request: Request, slot: int) -> None:
        """Count a penalised request's tokens; its slot is its row, too."""
        if self._counts is None:
            self._counts = self._make_table()
            self._in_prompt = self._make_table()
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

    def _bias(self, request: Request, slot: int) -> None:
        """Hand over a request's biases; its slot is its row, too."""
        if self._biases is None:
            self._biases = self._make_table()
        biases = self._biases
        staged = self._queue.stage(build_bias(request.params, self._vocab_size).numpy())
        self._queue.submit(lambda: biases[slot].copy_(staged, non_blocking=True))

    def _make_table(self) -> torch.Tensor:
        shape = (self._seeds.shape[0], self._vocab_size)
        return torch.zeros(shape, dtype=torch.float32, device=self._device)


def _floats_of(params: SamplingParams) -> tuple[float, ...]:
    # What rounds to 0 would be greedy.
    least = 0.0 if params.is_greedy else float(torch.finfo(torch.float32).tiny)
    return (
        max(params.temperature, least),
        params.min_p,
        params.repetition_penalty - 1.0,
        params.presence_penalty,
        params.frequency_penalty,
    )


def _integers_of(request: Request, slot: int) -> tuple[int, ...]:
    params = request.params
    assert params.seed is not None, "the engine's door draws a seed"
    # The bits of an unsigned seed, as int64 has them.
    seed = params.seed - 2**64 if params.seed >= 2**63 else params.seed
    return (
        slot,
        seed,
        params.top_k,
        request.choice_index,
        slot if params.has_penalties else _NO_ROW,
        slot if has_bias(params) else _NO_ROW,
    )
