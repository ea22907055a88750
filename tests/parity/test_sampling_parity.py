"""Our filters and penalties give the probabilities that transformers' own processors give."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.request import Request
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.sampling_params import SamplingParams

VOCAB = 211
CASES = [
    {"temperature": 0.7},
    {"top_k": 20},
    {"top_p": 0.85},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"bad_words_token_ids": ((7,), (3, 9), (4, 9, 8))},
    {"temperature": 1.4, "min_p": 0.02, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
]


def theirs(params: SamplingParams) -> LogitsProcessorList:
    """The same settings, in the order in which ours apply."""
    chain = LogitsProcessorList()
    if params.bad_words_token_ids:
        chain.append(
            NoBadWordsLogitsProcessor([list(w) for w in params.bad_words_token_ids], eos_token_id=0)
        )
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(params.temperature))
    if params.min_p > 0.0:
        chain.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    return chain


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "+".join(case))
def test_processed_probabilities_are_those_of_transformers(settings: dict[str, object]) -> None:
    params = SamplingParams(seed=0, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    prompt, drafts = [5, 6, 7, 3], [4, 9, 11]
    logits = torch.randn(4, VOCAB, generator=generator) * 3.0
    request = Request("parity", prompt, params)
    batch = SamplingBatch.build([request], 3, VOCAB)
    ours = Sampler(VOCAB).process(logits.clone(), batch, Rows.ragged([3]), torch.tensor([drafts]))
    for offset in range(4):
        context = torch.tensor([prompt + drafts[:offset]])
        expected = theirs(params)(context, logits[offset : offset + 1].clone())
        torch.testing.assert_close(ours[offset].softmax(-1), expected[0].softmax(-1))
