"""What the sampler remembers of a request between steps: token counts and a row of biases.

Each kind of state is one tensor with a row per request, so a step gathers rows instead of building
them. Rows exist only for requests whose parameters need them. A request's tokens only ever grow
while it lives, so counting what is new is enough, also after a preemption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from engine.request import Request
from engine.sampling.logits_processors import NEVER
from engine.sampling_params import SamplingParams


@dataclass(slots=True)
class _Entry:
    request: Request
    slot: int
    num_counted: int = 0


@dataclass(slots=True)
class _Slots:
    """Which request holds which row; rows of requests that left are handed out again."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)

    def find(self, request: Request) -> _Entry | None:
        entry = self.entries.get(request.request_id)
        if entry is not None and entry.request is not request:
            self.evict([request.request_id])
            return None
        return entry

    def add(self, request: Request) -> _Entry:
        slot = self.free.pop() if self.free else len(self.entries)
        entry = _Entry(request, slot)
        self.entries[request.request_id] = entry
        return entry

    def evict(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            entry = self.entries.pop(request_id, None)
            if entry is not None:
                self.free.append(entry.slot)


def _grown(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The same rows in a tensor with room for at least `num_rows`, doubling."""
    if num_rows <= rows.shape[0]:
        return rows
    larger = rows.new_zeros(max(num_rows, 2 * rows.shape[0], 4), rows.shape[1])
    larger[: rows.shape[0]] = rows
    return larger


class TokenCounts:
    """Which tokens a request's context holds, and how often its answer has each.

    Args:
        vocab_size: entries per row.
        device: where the rows live.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._slots = _Slots()
        self._is_in_prompt = torch.zeros(0, vocab_size, dtype=torch.float32, device=device)
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.float32, device=device)

    def rows(
        self, requests: Sequence[Request], num_tokens: Sequence[int], request_index: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy the state of each row's request, first counting tokens not seen yet.

        Args:
            requests: the step's requests.
            num_tokens: tokens of each that count.
            request_index: index into both, per row.

        Returns:
            `[num_rows, vocab]` float32, 1 where the prompt has the token, else 0; and of the same
            shape and type, how often the answer has it.
        """
        used = sorted(set(request_index))
        slots = dict(zip(used, self._count(requests, num_tokens, used), strict=True))
        picks = torch.tensor([slots[index] for index in request_index], dtype=torch.int64)
        picks = picks.to(self._output_counts.device)
        return self._is_in_prompt[picks], self._output_counts[picks]

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests; unknown ids are fine."""
        self._slots.evict(request_ids)

    def _count(
        self, requests: Sequence[Request], num_tokens: Sequence[int], used: Sequence[int]
    ) -> list[int]:
        slots: list[int] = []
        new_slots: list[int] = []
        new_tokens: list[int] = []
        for index in used:
            request = requests[index]
            entry = self._slots.find(request) or self._admit(request)
            tokens = request.token_ids[entry.num_counted : num_tokens[index]]
            new_slots.extend([entry.slot] * len(tokens))
            new_tokens.extend(tokens)
            entry.num_counted += len(tokens)
            slots.append(entry.slot)
        if new_tokens:
            places = torch.tensor([new_slots, new_tokens], dtype=torch.int64)
            places = places.to(self._output_counts.device)
            ones = torch.ones(len(new_tokens), device=places.device)
            self._output_counts.index_put_((places[0], places[1]), ones, accumulate=True)
        return slots

    def _admit(self, request: Request) -> _Entry:
        entry = self._slots.add(request)
        self._is_in_prompt = _grown(self._is_in_prompt, entry.slot + 1)
        self._output_counts = _grown(self._output_counts, entry.slot + 1)
        self._is_in_prompt[entry.slot] = 0.0
        self._output_counts[entry.slot] = 0.0
        prompt = torch.tensor(request.prompt_token_ids, dtype=torch.int64)
        self._is_in_prompt[entry.slot, prompt.to(self._is_in_prompt.device)] = 1.0
        entry.num_counted = request.num_prompt_tokens
        return entry


class TokenBiases:
    """What is added to a request's logits in every step: its biases, and -inf for banned tokens.

    Args:
        vocab_size: entries per row.
        device: where the rows live.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._slots = _Slots()
        self._biases = torch.zeros(0, vocab_size, dtype=torch.float32, device=device)

    def rows(self, requests: Sequence[Request], request_index: Sequence[int]) -> torch.Tensor:
        """Copy each row's biases, `[num_rows, vocab]`, float32; built once per request."""
        slots = {}
        for index in set(request_index):
            entry = self._slots.find(requests[index]) or self._admit(requests[index])
            slots[index] = entry.slot
        picks = torch.tensor([slots[index] for index in request_index], dtype=torch.int64)
        return self._biases[picks.to(self._biases.device)]

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests; unknown ids are fine."""
        self._slots.evict(request_ids)

    def _admit(self, request: Request) -> _Entry:
        entry = self._slots.add(request)
        self._biases = _grown(self._biases, entry.slot + 1)
        self._biases[entry.slot] = build_bias(request.params, self._biases.shape[1])
        return entry


def has_bias(params: SamplingParams) -> bool:
    """Whether tokens are banned or biased whatever the context."""
    return (
        bool(params.logit_bias)
        or params.allowed_token_ids is not None
        or any(len(word) == 1 for word in params.bad_words_token_ids)
    )


def build_bias(params: SamplingParams, vocab_size: int) -> torch.Tensor:
    """The biases of allowed ids, one-token bad words and `logit_bias`: `[vocab]`, float32."""
    bias = torch.zeros(vocab_size, dtype=torch.float32)
    if params.allowed_token_ids is not None:
        bias.fill_(NEVER)
        bias[list(params.allowed_token_ids)] = 0.0
    banned = [word[0] for word in params.bad_words_token_ids if len(word) == 1]
    bias[banned] = NEVER
    for token_id, value in (params.logit_bias or {}).items():
        bias[token_id] += value
    return bias
