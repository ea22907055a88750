"""One pipeline: every row obeys its request's parameters, as of its own draft prefix."""

from __future__ import annotations

import math

import pytest
import torch

from engine.request import Request
from engine.sampling.noise import gumbel_noise
from engine.sampling.sampler import Sampler, SamplerOutput
from engine.sampling.sampling_batch import Rows, SamplingBatch
from tests.engine.table_model import make_request

VOCAB = 29
EOS = frozenset({2})


def random_logits(num_rows: int, seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 2.0


def sample_row(
    logits: torch.Tensor, request: Request, draft: list[int] | None = None
) -> SamplerOutput:
    """Sample the row behind `draft`."""
    draft = draft or []
    batch = SamplingBatch.build([request], len(draft), logits.shape[-1])
    rows = Rows([0], [len(draft)])
    return Sampler(logits.shape[-1]).sample(logits.clone(), batch, rows, torch.tensor([draft]))


def processed_row(
    logits: torch.Tensor, request: Request, draft: list[int] | None = None
) -> torch.Tensor:
    draft = draft or []
    batch = SamplingBatch.build([request], len(draft), logits.shape[-1])
    rows = Rows([0], [len(draft)])
    drafts = torch.tensor([draft], dtype=torch.int64)
    return Sampler(logits.shape[-1]).process(logits.clone(), batch, rows, drafts)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_temperature_zero_takes_the_argmax(dtype: torch.dtype) -> None:
    logits = random_logits(1).to(dtype)
    expected = logits[0].float().argmax()
    assert sample_row(logits, make_request(temperature=0.0, top_k=5)).token_ids == expected


def test_a_token_is_the_argmax_of_logits_and_the_noise_of_its_position() -> None:
    logits = random_logits(3)
    request = make_request(prompt=[4] * 10, answer=[5, 6], seed=99, choice=3)
    batch = SamplingBatch.build([request], 2, VOCAB)
    noise = gumbel_noise([99] * 3, [3] * 3, [12, 13, 14], VOCAB)
    expected = (logits + noise).argmax(-1)
    drafts = torch.zeros(1, 2, dtype=torch.int64)
    output = Sampler(VOCAB).sample(logits, batch, Rows.ragged([2]), drafts)
    assert torch.equal(output.token_ids, expected)


def test_a_batch_of_plain_greedy_requests_is_argmax_only() -> None:
    plain = make_request(temperature=0.0)
    assert SamplingBatch.build([plain], 4, VOCAB).is_argmax_only
    for params in (
        {"temperature": 0.5},
        {"temperature": 0.0, "logit_bias": {1: 1.0}},
        {"temperature": 0.0, "frequency_penalty": 0.1},
        {"temperature": 0.0, "min_tokens": 1},
        {"temperature": 0.0, "allowed_token_ids": (1,)},
        {"temperature": 0.0, "bad_words_token_ids": ((1,),)},
    ):
        other = make_request(**params)
        assert not SamplingBatch.build([plain, other], 4, VOCAB).is_argmax_only


def test_no_rows_sample_nothing() -> None:
    batch = SamplingBatch.build([], [], VOCAB)
    nothing = torch.zeros(0, 0, dtype=torch.int64)
    output = Sampler(VOCAB).sample(torch.zeros(0, VOCAB), batch, Rows([], []), nothing)
    assert output.token_ids.shape == output.is_invalid.shape == (0,)


def test_ends_are_impossible_before_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    request = make_request(answer=[5], eos=EOS, min_tokens=3, stop_token_ids=(7,))
    for draft, is_early in (([], True), ([9], True), ([9, 9], False)):
        row = processed_row(logits, request, draft)
        assert (row[2] == -math.inf) == (row[7] == -math.inf) == is_early
        assert row[3] > -math.inf


def test_only_allowed_tokens_are_possible() -> None:
    row = processed_row(random_logits(1), make_request(allowed_token_ids=(3, 11)))
    assert row.isfinite().nonzero().flatten().tolist() == [3, 11]


def test_logit_bias_is_added() -> None:
    logits = random_logits(1)
    row = processed_row(logits, make_request(logit_bias={3: 2.5, 4: -100.0}))
    difference = row - logits[0]
    assert difference[3] == pytest.approx(2.5, abs=1e-5)
    assert difference[4] == pytest.approx(-100.0, abs=1e-4)
    assert difference.count_nonzero() == 2


@pytest.mark.parametrize(
    ("answer", "draft", "is_banned"),
    [
        ([8, 9], [], True),
        ([8], [9], True),
        ([], [8, 9], True),
        ([8, 9], [1], False),
        ([9], [8], False),
        ([], [], False),
    ],
)
def test_bad_words_are_not_completed_across_the_draft(
    answer: list[int], draft: list[int], is_banned: bool
) -> None:
    request = make_request(answer=answer, bad_words_token_ids=((8, 9, 5),))
    row = processed_row(random_logits(1), request, draft)
    assert (row[5] == -math.inf) == is_banned
    assert row.isinf().sum() == int(is_banned)


def test_a_bad_word_longer_than_the_context_bans_nothing() -> None:
    request = make_request(prompt=[9], bad_words_token_ids=((8, 9, 5),))
    assert processed_row(random_logits(1), request).isfinite().all()


def test_penalties_count_each_rows_own_draft_prefix() -> None:
    request = make_request(
        prompt=[1, 2], answer=[3, 3], frequency_penalty=0.5, presence_penalty=0.25
    )
    logits = torch.zeros(3, VOCAB)
    batch = SamplingBatch.build([request], 2, VOCAB)
    drafts = torch.tensor([[3, 4]])
    rows = Sampler(VOCAB).process(logits, batch, Rows.ragged([2]), drafts)
    assert rows[:, 3].tolist() == [-1.25, -1.75, -1.75]
    assert rows[:, 4].tolist() == [0.0, 0.0, -0.75]
    assert rows[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_repetition_penalty_counts_the_prompt_too() -> None:
    request = make_request(prompt=[1, 2], answer=[3], repetition_penalty=2.0)
    logits = torch.ones(1, VOCAB)
    logits[0, 2] = -1.0
    row = processed_row(logits, request, [4])
    assert row[:6].tolist() == [1.0, 0.5, -2.0, 0.5, 0.5, 1.0]


def penalised(name: str = "request", **more: object) -> Request:
    return make_request(
        name=name, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, **more
    )


def process_step(sampler: Sampler, request: Request, seed: int) -> torch.Tensor:
    batch = SamplingBatch.build([request], 0, VOCAB)
    return sampler.process(random_logits(1, seed), batch, Rows([0], [0]))[0]


def test_counts_kept_between_steps_equal_counts_from_scratch() -> None:
    sampler, request = Sampler(VOCAB), penalised(prompt=[1, 2, 3])
    for step, tokens in enumerate([[], [4], [4, 5, 1], [4], [6, 6]]):
        request.token_ids.extend(tokens)
        assert torch.equal(
            process_step(sampler, request, step), process_step(Sampler(VOCAB), request, step)
        )


def test_drafting_leaves_the_counts_as_they_are() -> None:
    sampler, request = Sampler(VOCAB), penalised()
    batch = SamplingBatch.build([request], 3, VOCAB)
    for offset in range(3):
        drafts = torch.tensor([[7, 7, 7]])
        sampler.sample(random_logits(1), batch, Rows([0], [offset]), drafts)
    assert torch.equal(process_step(sampler, request, 5), process_step(Sampler(VOCAB), request, 5))


def test_a_row_given_to_another_request_is_clean() -> None:
    sampler = Sampler(VOCAB)
    first = penalised("first", answer=[5, 5, 5], logit_bias={1: 9.0})
    process_step(sampler, first, 0)
    sampler.evict(["first", "unknown"])
    second = penalised("second", prompt=[9], logit_bias={2: 3.0})
    assert torch.equal(process_step(sampler, second, 1), process_step(Sampler(VOCAB), second, 1))


def test_a_new_request_under_an_old_id_starts_from_scratch() -> None:
    sampler = Sampler(VOCAB)
    process_step(sampler, penalised("same", answer=[5, 5, 5]), 0)
    second = penalised("same", prompt=[9])
    assert torch.equal(process_step(sampler, second, 1), process_step(Sampler(VOCAB), second, 1))


def test_many_requests_come_and_go() -> None:
    sampler = Sampler(VOCAB)
    for wave in range(4):
        requests = [
            penalised(f"{wave}-{i}", prompt=[i], logit_bias={i: 1.0}) for i in range(3 + 4 * wave)
        ]
        for request in requests:
            assert torch.equal(
                process_step(sampler, request, wave), process_step(Sampler(VOCAB), request, wave)
            )
        sampler.evict(request.request_id for request in requests[::2])


def mixed_requests() -> list[Request]:
    settings: list[dict[str, object]] = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 4, "min_p": 0.02},
        {"temperature": 0.0, "repetition_penalty": 1.4},
        {"temperature": 1.5, "frequency_penalty": 0.9, "presence_penalty": -0.5},
        {"bad_words_token_ids": ((0, 1, 5), (3,)), "logit_bias": {4: 1.0}},
        {"min_tokens": 4, "stop_token_ids": (6,), "top_p": 0.95},
    ]
    return [
        make_request(
            prompt=range(1 + i % 5),
            answer=[i] * (i % 3),
            name=str(i),
            eos=EOS,
            choice=i % 2,
            **{"seed": 1000 + i, **settings[i % len(settings)]},
        )
        for i in range(2 * len(settings))
    ]


def sample_together(requests: list[Request], drafts: dict[str, list[int]]) -> list[list[int]]:
    """The tokens of one verify pass, per request."""
    counts = [len(drafts[r.request_id]) for r in requests]
    batch = SamplingBatch.build(requests, counts, VOCAB)
    padded = torch.zeros(len(requests), max(counts), dtype=torch.int64)
    for row, request in enumerate(requests):
        padded[row, : counts[row]] = torch.tensor(drafts[request.request_id], dtype=torch.int64)
    logits = [
        random_logits(c + 1, int(r.request_id)) for r, c in zip(requests, counts, strict=True)
    ]
    output = Sampler(VOCAB).sample(torch.cat(logits), batch, Rows.ragged(counts), padded)
    return [chunk.tolist() for chunk in output.token_ids.split([count + 1 for count in counts])]


def test_tokens_are_the_same_in_any_batch_and_order() -> None:
    requests = mixed_requests()
    drafts = {r.request_id: [3, 0, 1, 7][: i % 5] for i, r in enumerate(requests)}
    together = sample_together(requests, drafts)
    assert sample_together(requests[::-1], drafts) == together[::-1]
    for request, tokens in zip(requests, together, strict=True):
        assert sample_together([request], drafts) == [tokens]


def test_choices_of_one_prompt_differ() -> None:
    logits = torch.zeros(1, 1000)
    tokens = {int(sample_row(logits, make_request(choice=c)).token_ids) for c in range(8)}
    assert len(tokens) > 4


def test_noise_kept_from_the_last_step_is_the_noise_of_its_position() -> None:
    sampler, requests = Sampler(VOCAB), [make_request(name=str(s), seed=s) for s in range(3)]
    for step, growth in enumerate([(0, 0, 0), (1, 3, 5), (2, 1, 4), (5, 5, 5)]):
        for request, count in zip(requests, growth, strict=True):
            request.token_ids.extend([1] * count)
        present = requests if step != 2 else requests[:2]
        batch = SamplingBatch.build(present, 4, VOCAB)
        rows = Rows.ragged([4] * len(present))
        drafts = torch.zeros(len(present), 4, dtype=torch.int64)
        logits = random_logits(len(rows), step)
        kept = sampler.sample(logits.clone(), batch, rows, drafts).token_ids
        fresh = Sampler(VOCAB).sample(logits.clone(), batch, rows, drafts).token_ids
        assert torch.equal(kept, fresh)


def test_narrower_logits_use_the_same_noise() -> None:
    request = make_request(frequency_penalty=0.5, logit_bias={3: 1.0})
    logits = random_logits(1)
    wide = torch.cat([logits, torch.full((1, 7), -math.inf)], dim=-1)
    batch = SamplingBatch.build([request], 0, VOCAB + 7)
    sampler = Sampler(VOCAB + 7)
    narrow = sampler.sample(logits, batch, Rows([0], [0])).token_ids
    assert torch.equal(narrow, sampler.sample(wide, batch, Rows([0], [0])).token_ids)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1},
        {"repetition_penalty": 1.5},
        {"allowed_token_ids": (1, 2)},
        {"top_p": 0.5},
        {"top_k": 1},
    ],
)
def test_broken_logits_end_only_their_own_row(value: float, params: dict[str, object]) -> None:
    requests = [make_request(name=str(i), seed=i, **params) for i in range(3)]
    logits = random_logits(3)
    batch = SamplingBatch.build(requests, 0, VOCAB)
    rows = Rows([0, 1, 2], [0, 0, 0])
    healthy = Sampler(VOCAB).sample(logits.clone(), batch, rows)
    logits[1, 20] = value
    broken = Sampler(VOCAB).sample(logits, batch, rows)
    assert healthy.is_invalid.tolist() == [False, False, False]
    assert broken.is_invalid.tolist() == [False, True, False]
    assert broken.token_ids[[0, 2]].equal(healthy.token_ids[[0, 2]])
    assert broken.token_ids[1] == 0


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_request_that_allows_no_token_is_reported(temperature: float) -> None:
    request = make_request(
        allowed_token_ids=(3, 4), bad_words_token_ids=((3,), (4,)), temperature=temperature
    )
    assert sample_row(random_logits(1), request).is_invalid.tolist() == [True]


def test_impossible_logits_from_the_model_are_fine() -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 17] = -3.0
    output = sample_row(logits, make_request(temperature=0.8, top_p=0.9))
    assert output.token_ids.tolist() == [17]
    assert output.is_invalid.tolist() == [False]
