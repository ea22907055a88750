"""Requests as the pipeline of `engine/sampling` sees them, and the same as slots of tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch

from engine.request import Request
from engine.sampling.grammar_masks import GrammarMasks
from engine.sampling.grammar_vocabulary import Mask
from engine.sampling.request_state import build_bias, has_bias
from engine.sampling.sampler import Sampler, SamplerOutput
from engine.sampling.sampling_batch import Rows, SamplingBatch
from kernels.gumbel_sample import SampledRows, SampleRows
from tests.engine.table_model import make_request

TINY = torch.finfo(torch.float32).tiny


class FixedMasks(GrammarMasks):
    """Masks of some rows that nobody had to work out."""

    def __init__(self, masked: list[int], mask: Mask) -> None:
        super().__init__()
        self._fixed = (masked, mask)

    def masks(
        self, batch: SamplingBatch, rows: Rows, draft_token_ids: torch.Tensor | None
    ) -> tuple[list[int], Mask | None]:
        return self._fixed if self._fixed[0] else ([], None)


@dataclass
class SampleCase:
    """One pass.

    Attributes:
        logits: [num_rows, >= vocab_size].
        vocab_size: tokens that count.
        requests: whose rows these are.
        num_drafts: in front of each request's last row.
        masked: rows with a mask.
        mask: [len(masked), words], int32.
    """

    logits: torch.Tensor
    vocab_size: int
    requests: list[Request]
    num_drafts: list[int]
    masked: list[int]
    mask: Mask

    @property
    def drafts(self) -> torch.Tensor:
        """[num_requests, most drafts + 1], the same whenever asked."""
        generator = torch.Generator().manual_seed(len(self.requests))
        shape = (len(self.requests), max(self.num_drafts, default=0) + 1)
        return torch.randint(min(9, self.vocab_size), shape, generator=generator)

    def expected(self, *, with_margins: bool = False) -> SamplerOutput:
        """What the pipeline makes of it."""
        batch = SamplingBatch.build(self.requests, self.num_drafts, self.vocab_size)
        sampler = Sampler(self.vocab_size, grammars=FixedMasks(self.masked, self.mask))
        if self.masked:
            batch.is_argmax_only = False
        return sampler.sample(
            self.logits[:, : self.vocab_size].float().clone(),
            batch,
            Rows.ragged(self.num_drafts),
            self.drafts,
            with_margins=with_margins,
        )

    def rows(self, **changes: object) -> SampleRows:
        """The same as slots: those of the requests in reverse order, behind a scratch slot."""
        num_slots = len(self.requests) + 1
        slot_of = [num_slots - 1 - index for index in range(len(self.requests))]
        packed = Rows.ragged(self.num_drafts)
        params = [request.params for request in reversed(self.requests)]

        def column(values: Sequence[float], dtype: torch.dtype, scratch: float = 0) -> torch.Tensor:
            return torch.tensor([scratch, *values], dtype=dtype)

        seeds = [((p.seed or 0) + 2**63) % 2**64 - 2**63 for p in params]
        drafts = torch.zeros(num_slots, self.drafts.shape[1], dtype=torch.int64)
        drafts[slot_of] = self.drafts
        settings = {
            "vocab_size": self.vocab_size,
            "has_noise": any(not p.is_greedy for p in params),
            "has_filters": any(p.has_filters for p in params),
            "slots": torch.tensor([slot_of[i] for i in packed.request_index], dtype=torch.int32),
            "offsets": torch.tensor(packed.offset, dtype=torch.int32),
            "num_tokens": column([r.num_tokens for r in reversed(self.requests)], torch.int64),
            "temperature": column(
                [p.temperature and max(p.temperature, TINY) for p in params], torch.float32
            ),
            "top_k": column([p.top_k for p in params], torch.int32),
            "top_p": column([p.top_p for p in params], torch.float64),
            "min_p": column([p.min_p for p in params], torch.float32),
            "seed": column(seeds, torch.int64),
            "choice": column([r.choice_index for r in reversed(self.requests)], torch.int32),
            "draft_token_ids": drafts,
        }
        return SampleRows(
            **{**settings, **self._penalties(), **self._biases(), **self._masks(), **changes}
        )

    def _penalties(self) -> dict[str, torch.Tensor]:
        """Rows of counts, in the order of requests; none where nobody has penalties."""
        chosen = [i for i, request in enumerate(self.requests) if request.params.has_penalties]
        if not chosen:
            return {}
        num_slots = len(self.requests) + 1
        in_prompt = torch.zeros(len(chosen), self.vocab_size + 1)
        counts = torch.zeros(len(chosen), self.vocab_size + 3)
        columns = torch.zeros(3, num_slots)
        penalty_row = torch.full((num_slots,), -1, dtype=torch.int32)
        for row, index in enumerate(chosen):
            request, slot = self.requests[index], num_slots - 1 - index
            penalty_row[slot] = row
            in_prompt[row, request.prompt_token_ids] = 1.0
            for token_id in request.token_ids[request.num_prompt_tokens :]:
                counts[row, token_id] += 1.0
            params = request.params
            columns[0, slot] = params.repetition_penalty - 1.0
            columns[1, slot], columns[2, slot] = params.presence_penalty, params.frequency_penalty
        return {
            "penalty_row": penalty_row,
            "in_prompt": in_prompt,
            "output_counts": counts,
            "repetition_excess": columns[0],
            "presence": columns[1],
            "frequency": columns[2],
        }

    def _biases(self) -> dict[str, torch.Tensor]:
        chosen = [i for i, request in enumerate(self.requests) if has_bias(request.params)]
        if not chosen:
            return {}
        bias_row = torch.full((len(self.requests) + 1,), -1, dtype=torch.int32)
        bias_row[[len(self.requests) - index for index in chosen]] = torch.arange(
            len(chosen), dtype=torch.int32
        )
        biases = [build_bias(self.requests[i].params, self.vocab_size + 5) for i in chosen]
        return {"bias_row": bias_row, "biases": torch.stack(biases)}

    def _masks(self) -> dict[str, torch.Tensor]:
        if not self.masked:
            return {}
        mask_row = torch.full((self.logits.shape[0],), -1, dtype=torch.int32)
        mask_row[self.masked] = torch.arange(len(self.masked), dtype=torch.int32)
        return {"mask_row": mask_row, "bitmask": torch.from_numpy(self.mask)}


def make_case(
    logits: torch.Tensor,
    settings: Sequence[dict[str, object]],
    num_drafts: Sequence[int] | None = None,
    *,
    vocab_size: int | None = None,
    masked: Sequence[int] = (),
) -> SampleCase:
    """A pass of requests with these sampling parameters; random masks allow every other token."""
    vocab_size = vocab_size or logits.shape[1]
    requests = [
        make_request(
            prompt=[token_id % vocab_size for token_id in (1, 2, 3, 2)],
            answer=[token_id % vocab_size for token_id in (3, 4, 4, 5)[: index % 5]],
            name=f"request{index}",
            choice=index % 3,
            **{"seed": 2**64 - 1 - index, "logprobs": 0, **params},
        )
        for index, params in enumerate(settings)
    ]
    num_words = -(-vocab_size // 32)
    draw = np.random.default_rng(len(masked))
    mask = draw.integers(-(2**31), 2**31, (len(masked), num_words), dtype=np.int64)
    return SampleCase(
        logits,
        vocab_size,
        requests,
        list(num_drafts or [0] * len(requests)),
        list(masked),
        mask.astype(np.int32),
    )


def random_settings(seed: int, vocab_size: int) -> dict[str, object]:
    """One request's sampling parameters, each of them at rest about every other time."""
    draw = random.Random(seed)
    choices: dict[str, list[object]] = {
        "temperature": [0.0, 1.0, 1.0, 0.6, 0.9, 1.7, 1e-3],
        "top_k": [0, 0, 1, 3, 20, 50, vocab_size - 1, 2 * vocab_size],
        "top_p": [1.0, 1.0, 0.95, 0.9, 0.5, 0.1, 0.999],
        "min_p": [0.0, 0.0, 0.0, 0.05, 0.3],
        "repetition_penalty": [1.0, 1.0, 1.1, 1.3, 0.8],
        "presence_penalty": [0.0, 0.0, 0.7],
        "frequency_penalty": [0.0, 0.0, 0.3, -0.4],
        "logit_bias": [None, None, {1: 2.5, 4: -3.0}],
        "bad_words_token_ids": [(), (), ((2,), (5,))],
        "seed": [0, 7, 2**32 + 1, 2**63, 2**64 - 1],
    }
    return {name: draw.choice(values) for name, values in choices.items()}


def moved(rows: SampleRows, device: str) -> SampleRows:
    """The same rows on a device."""
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return SampleRows(
        **{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    )


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, memory that nobody wrote holds NaN or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_same(sampled: SampledRows, expected: SamplerOutput) -> None:
    """Tokens and validity agree exactly, log probabilities and margins closely, where given."""
    assert sampled.token_ids.dtype == torch.int64
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
    assert sampled.is_invalid.tolist() == expected.is_invalid.tolist()
    is_valid = ~expected.is_invalid
    if sampled.logprobs is not None:
        assert expected.logprobs is not None
        assert sampled.ranks is not None
        ours, theirs = sampled.logprobs.cpu()[is_valid], expected.logprobs.chosen[is_valid]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert sampled.ranks[is_valid].tolist() == expected.logprobs.rank[is_valid].tolist()
    if sampled.margins is not None:
        assert expected.margins is not None
        ours, theirs = sampled.margins.cpu()[is_valid], expected.margins[is_valid]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert sampled.margins[~is_valid].isnan().all()
