"""Log probabilities are the model's own: log-softmax of what it said."""

from __future__ import annotations

import pytest
import torch

from engine.sampling.logprobs import compute_logprobs
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch
from tests.engine.table_model import make_request

VOCAB = 23


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1)) * 2.0


def test_chosen_token_has_its_log_softmax(logits: torch.Tensor) -> None:
    token_ids = torch.tensor([0, 5, 22, 7])
    result = compute_logprobs(logits, token_ids, 0)
    expected = logits.log_softmax(-1).gather(-1, token_ids[:, None]).squeeze(-1)
    torch.testing.assert_close(result.chosen, expected)
    entries = [result.of_row(row, 0) for row in range(4)]
    assert [entry.logprob for entry in entries] == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(entry.top == [] for entry in entries)


def test_rank_counts_the_more_likely_tokens(logits: torch.Tensor) -> None:
    order = logits.argsort(dim=-1, descending=True)
    for rank in (1, 2, VOCAB):
        result = compute_logprobs(logits, order[:, rank - 1], 0)
        assert result.rank.tolist() == [rank] * 4


def test_top_lists_the_most_likely_first(logits: torch.Tensor) -> None:
    result = compute_logprobs(logits, torch.zeros(4, dtype=torch.int64), 5)
    logprobs = logits.log_softmax(-1)
    for row in range(4):
        entry = result.of_row(row, 5)
        order = logprobs[row].argsort(descending=True)[:5].tolist()
        assert [token_id for token_id, _ in entry.top] == order
        values = [value for _, value in entry.top]
        assert values == pytest.approx(logprobs[row, order].tolist(), abs=1e-6)


def test_each_request_gets_as_many_alternatives_as_it_asked_for(logits: torch.Tensor) -> None:
    result = compute_logprobs(logits, torch.zeros(4, dtype=torch.int64), 5)
    assert [len(result.of_row(0, count).top) for count in (0, 1, 3, 5)] == [0, 1, 3, 5]


def test_alternatives_never_exceed_the_vocabulary() -> None:
    result = compute_logprobs(torch.zeros(1, 3), torch.tensor([1]), 20)
    assert len(result.of_row(0, 20).top) == 3


def test_sampler_reports_the_model_before_any_processing(logits: torch.Tensor) -> None:
    expected = logits.log_softmax(-1)
    request = make_request(
        logprobs=2, temperature=0.3, top_k=1, logit_bias={4: 100.0}, repetition_penalty=2.0
    )
    batch = SamplingBatch.build([request], 3, VOCAB)
    drafts = torch.zeros(1, 3, dtype=torch.int64)
    output = Sampler(VOCAB).sample(logits, batch, Rows.ragged([3]), drafts)
    assert output.token_ids.tolist() == [4, 4, 4, 4]
    assert output.logprobs is not None
    for row in range(4):
        entry = output.logprobs.of_row(row, 2)
        assert entry.logprob == pytest.approx(float(expected[row, 4]), abs=1e-6)


def test_sampler_reports_nothing_unless_asked(logits: torch.Tensor) -> None:
    batch = SamplingBatch.build([make_request()], 0, VOCAB)
    assert Sampler(VOCAB).sample(logits[:1], batch, Rows([0], [0])).logprobs is None


def test_drafts_have_no_log_probabilities(logits: torch.Tensor) -> None:
    batch = SamplingBatch.build([make_request(logprobs=1)], 0, VOCAB)
    output = Sampler(VOCAB).sample(logits[:1], batch, Rows([0], [0]), with_logprobs=False)
    assert output.logprobs is None


def test_greedy_rows_report_rank_one(logits: torch.Tensor) -> None:
    batch = SamplingBatch.build([make_request(logprobs=0, temperature=0.0)], 0, VOCAB)
    output = Sampler(VOCAB).sample(logits[:1], batch, Rows([0], [0]))
    assert output.logprobs is not None
    assert output.logprobs.of_row(0, 0).rank == 1
