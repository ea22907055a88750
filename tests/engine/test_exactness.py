"""Speculation changes nothing: by enumeration, by statistics, and seed by seed.

Law 1 and 2 of the architecture. Each statistical test has a negative control that must fail.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from engine.sampling import noise_rows
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.speculative.token_drafters import (
    NgramDrafter,
    PredictionDrafter,
    SuffixDrafter,
    TokenDrafter,
)
from engine.speculative.verifier import Verification, verify, walk
from tests.engine.coupling import coupled_joint
from tests.engine.laws import SCORE_LIMIT, Law, accept_one_too_many, chi_square
from tests.engine.table_model import TableModel, Verify, generate, make_request, propose

Next = Callable[[Sequence[int]], torch.Tensor]

# Every part of the pipeline that depends on the drafts in front of a row is in one of these.
SETTINGS = {
    "plain": {},
    "filtered": {"temperature": 0.7, "top_k": 3, "top_p": 0.9},
    "min_p": {"temperature": 1.3, "min_p": 0.2},
    "penalised": {
        "repetition_penalty": 1.6,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.8,
        "temperature": 0.9,
    },
    "constrained": {
        "bad_words_token_ids": ((2, 1), (1, 1)),
        "min_tokens": 2,
        "stop_token_ids": (2,),
        "logit_bias": {1: 1.5},
    },
}
SIZES = [(3, 3), (4, 2), (5, 2)]


def next_law(model: TableModel, params: dict[str, object]) -> Next:
    """The plain sampler's probabilities, float64, of the token after an answer."""
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def law(answer: Sequence[int]) -> torch.Tensor:
        if tuple(answer) not in known:
            request = make_request(answer=answer, **params)
            batch = SamplingBatch.build([request], 0, model.vocab_size)
            sampler = Sampler(model.vocab_size)
            logits = sampler.process(model.logits([request.token_ids]), batch, Rows([0], [0]))
            known[tuple(answer)] = logits[0].double().softmax(-1)
        return known[tuple(answer)]

    return law


def verify_laws(model: TableModel, params: dict[str, object], draft: Sequence[int]) -> torch.Tensor:
    """The probabilities of one verify pass's rows: [len(draft) + 1, vocab], float64."""
    request = make_request(**params)
    batch = SamplingBatch.build([request], len(draft), model.vocab_size)
    rows = Rows.ragged([len(draft)])
    contexts = [request.token_ids + list(draft[:offset]) for offset in rows.offset]
    sampler = Sampler(model.vocab_size)
    drafts = torch.tensor([list(draft)])
    return sampler.process(model.logits(contexts), batch, rows, drafts).double().softmax(-1)


# A prompt that goes on as it began, one that only a past answer went on from, and a prediction.
PROMPTS: dict[str, dict[str, object]] = {
    "ngram": {"prompt": (0, 1, 2, 0, 1)},
    "suffix": {"prompt": (2, 0, 1)},
    "prediction": {"predicted_token_ids": (1, 2, 0)},
}


def model_law(target: TableModel, params: dict[str, object], num_drafts: int) -> Next:
    """A draft model's."""
    return next_law(TableModel.random(target.vocab_size, 2), params)


def near_law(target: TableModel, params: dict[str, object], num_drafts: int) -> Next:
    """That of some of the target's layers: a model that is nearly the target."""
    return next_law(target.near(2, 0.7), params)


def common_law(target: TableModel, params: dict[str, object], num_drafts: int) -> Next:
    """That of a draft which knows but two of the target's tokens."""
    table = target.near(2, 0.7).table
    table[..., 2:] = -torch.inf
    return next_law(TableModel(table), params)


def string_law(target: TableModel, params: dict[str, object], num_drafts: int) -> Next:
    """That of a draft with two tokens for each of the target's, which share its noise."""
    tables = [target.near(seed, 0.7).table for seed in (2, 3)]
    return next_law(TableModel(torch.maximum(*tables)), params)


def known_law(
    drafter: TokenDrafter, target: TableModel, params: dict[str, object], num_drafts: int
) -> Next:
    """That of tokens which are looked up: they leave nothing to chance."""
    past = make_request((2,), (0, 1, 2, 1, 0), name="past")
    drafter.draft(past, 1)
    drafter.evict(["past"])
    known = drafter.draft(make_request(**params), num_drafts)  # type: ignore[arg-type]
    assert known is not None, "the prompts are made so"
    assert len(known.token_ids) == num_drafts
    certain = torch.eye(target.vocab_size, dtype=torch.float64)
    return lambda answer: certain[known.token_ids[len(answer)]]


DRAFTERS: dict[str, Callable[[TableModel, dict[str, object], int], Next]] = {
    "model": model_law,
    "layer_skip": near_law,
    "tli": common_law,
    "slem": string_law,
    "ngram": partial(known_law, NgramDrafter()),
    "suffix": partial(known_law, SuffixDrafter()),
    "prediction": partial(known_law, PredictionDrafter()),
}


def plain_law(law: Next, vocab_size: int, num_tokens: int) -> Law:
    """The joint law of the first tokens, one plain step at a time."""
    joint: Law = {}
    for answer in itertools.product(range(vocab_size), repeat=num_tokens):
        probability = 1.0
        for position, token_id in enumerate(answer):
            probability *= float(law(answer[:position])[token_id])
        joint[answer] = probability
    return joint


def speculative_law(
    law: Next,
    draft_law: Next,
    rows_of: Callable[[Sequence[int]], torch.Tensor],
    vocab_size: int,
    num_drafts: int,
    accept: Callable[[Sequence[int], Sequence[Sequence[int]]], Verification] = walk,
) -> Law:
    """The joint law of the first tokens when one verify pass comes first.

    Draft and target sample each position with shared Gumbel noise; every pair of outcomes is
    enumerated with its exact probability. Tokens that the pass leaves open follow the plain law:
    later positions have noise of their own.
    """
    joint: Law = Counter()
    for draft in itertools.product(range(vocab_size), repeat=num_drafts):
        rows = rows_of(draft)
        couplings = [
            coupled_joint(rows[j], draft_law(draft[:j]))[:, draft[j]] for j in range(num_drafts)
        ]
        for sampled in itertools.product(range(vocab_size), repeat=num_drafts + 1):
            weight = float(rows[num_drafts][sampled[num_drafts]])
            for coupling, token_id in zip(couplings, sampled, strict=False):
                weight *= float(coupling[token_id])
            if weight == 0.0:
                continue
            emitted = tuple(accept(sampled, [draft]).emitted[0])
            spread(joint, emitted, weight, law, vocab_size, num_drafts + 1)
    return joint


def spread(
    joint: Law, start: tuple[int, ...], weight: float, law: Next, vocab_size: int, length: int
) -> None:
    """Add a weight to every continuation of `start`, by the plain law."""
    if len(start) >= length:
        joint[start[:length]] += weight
        return
    for token_id in range(vocab_size):
        probability = float(law(start)[token_id])
        if probability:
            spread(joint, (*start, token_id), weight * probability, law, vocab_size, length)


def largest_error(plain: Law, speculative: Law) -> float:
    return max(abs(plain[answer] - speculative.get(answer, 0.0)) for answer in plain)


@pytest.mark.parametrize(("vocab_size", "num_drafts"), SIZES)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_joint_law_is_the_plain_law(
    drafter: str, name: str, vocab_size: int, num_drafts: int
) -> None:
    target = TableModel.random(vocab_size, 1)
    params = SETTINGS[name] | PROMPTS.get(drafter, {})
    law = next_law(target, params)
    draft_law = DRAFTERS[drafter](target, params, num_drafts)
    plain = plain_law(law, vocab_size, num_drafts + 1)
    speculative = speculative_law(
        law, draft_law, lambda draft: verify_laws(target, params, draft), vocab_size, num_drafts
    )
    assert sum(plain.values()) == pytest.approx(1.0, abs=1e-12)
    assert sum(speculative.values()) == pytest.approx(1.0, abs=1e-12)
    assert largest_error(plain, speculative) < 1e-12


def test_enumeration_notices_a_draft_that_is_accepted_unverified() -> None:
    target, drafter = TableModel.random(3, 1), TableModel.random(3, 2)
    law, draft_law = next_law(target, {}), next_law(drafter, {})
    broken = speculative_law(
        law, draft_law, lambda d: verify_laws(target, {}, d), 3, 2, accept_one_too_many
    )
    assert largest_error(plain_law(law, 3, 3), broken) > 1e-3


def test_enumeration_notices_penalties_that_ignore_the_draft_prefix() -> None:
    target, drafter = TableModel.random(3, 1), TableModel.random(3, 2)
    params = SETTINGS["penalised"]
    law, draft_law = next_law(target, params), next_law(drafter, params)

    def stale_rows(draft: Sequence[int]) -> torch.Tensor:
        request = make_request(**params)
        batch = SamplingBatch.build([request], 0, 3)
        rows = Rows([0] * (len(draft) + 1), [0] * (len(draft) + 1))
        contexts = [request.token_ids + list(draft[:offset]) for offset in range(len(rows))]
        logits = Sampler(3).process(target.logits(contexts), batch, rows)
        return logits.double().softmax(-1)

    broken = speculative_law(law, draft_law, stale_rows, 3, 2)
    assert largest_error(plain_law(law, 3, 3), broken) > 1e-3


NUM_DRAWS = 20_000
NUM_TOKENS = 3


def draw(
    num_drafts: int, verify_with: Verify = verify, num_draws: int = NUM_DRAWS, **params: object
) -> tuple[list[list[int]], TableModel]:
    target = TableModel.random(5, 11, spread=0.8)
    requests = [make_request(name=str(s), seed=s, **params) for s in range(num_draws)]
    answers = generate(
        requests,
        target,
        target.near(12, 0.7) if num_drafts else None,
        num_draft_tokens=num_drafts,
        num_new_tokens=NUM_TOKENS,
        verify_with=verify_with,
    )
    return answers, target


@pytest.mark.parametrize(("name", "num_drafts"), [("plain", 3), ("penalised", 2), ("filtered", 1)])
def test_speculative_draws_have_the_plain_law_and_are_the_plain_draws(
    name: str, num_drafts: int
) -> None:
    params = SETTINGS[name]
    plain, target = draw(0, **params)
    speculative, _ = draw(num_drafts, **params)
    assert chi_square(speculative, plain_law(next_law(target, params), 5, NUM_TOKENS)) < SCORE_LIMIT
    assert speculative == plain


def test_chi_square_notices_a_draft_that_is_accepted_unverified() -> None:
    def broken(
        sampled: torch.Tensor, drafts: torch.Tensor, num_draft_tokens: Sequence[int]
    ) -> Verification:
        assert len(set(num_draft_tokens)) == 1, "all requests draft alike here"
        return accept_one_too_many(sampled.tolist(), drafts.tolist())

    answers, target = draw(2, broken)
    assert chi_square(answers, plain_law(next_law(target, {}), 5, NUM_TOKENS)) > SCORE_LIMIT


def test_chi_square_notices_noise_that_is_used_at_every_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = noise_rows.gumbel_noise

    def reused(
        seeds: list[int], choices: list[int], positions: list[int], vocab_size: int, device: str
    ) -> torch.Tensor:
        return fresh(seeds, choices, [0] * len(positions), vocab_size, device)

    monkeypatch.setattr(noise_rows, "gumbel_noise", reused)
    answers, target = draw(0)
    assert chi_square(answers, plain_law(next_law(target, {}), 5, NUM_TOKENS)) > SCORE_LIMIT


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.6},
        {"allowed_token_ids": (1, 4)},
        {"bad_words_token_ids": ((3,), (4,))},
    ],
)
def test_tokens_without_probability_are_never_drawn(params: dict[str, object]) -> None:
    answers, target = draw(2, num_draws=4000, **params)
    law = plain_law(next_law(target, params), 5, NUM_TOKENS)
    impossible = {answer for answer, probability in law.items() if probability == 0.0}
    assert impossible
    assert not impossible & {tuple(answer) for answer in answers}


def accepted_share(target: torch.Tensor, drafter: torch.Tensor, *, draft_seed_shift: int) -> float:
    """How often a draft equals the target's sample at one position, over many seeds."""
    vocab_size = target.shape[-1]

    def sampled(logits: torch.Tensor, shift: int) -> torch.Tensor:
        requests = [make_request(name=str(s), seed=s + shift) for s in range(NUM_DRAWS)]
        batch = SamplingBatch.build(requests, 0, vocab_size)
        rows = Rows(range(NUM_DRAWS), [0] * NUM_DRAWS)
        return Sampler(vocab_size).sample(logits.repeat(NUM_DRAWS, 1), batch, rows).token_ids

    matches = sampled(target, 0) == sampled(drafter, draft_seed_shift)
    return float(matches.double().mean())


def synthetic_pair(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A Zipf-like target over 64 tokens, and a drafter that is off by normal noise."""
    generator = torch.Generator().manual_seed(5)
    target = -1.5 * torch.log(torch.arange(1.0, 65.0))
    return target, target + distance * torch.randn(64, generator=generator)


@pytest.mark.parametrize("distance", [0.5, 1.0])
def test_coupled_drafts_are_accepted_nearly_as_often_as_rejection_sampling_could(
    distance: float,
) -> None:
    target, drafter = synthetic_pair(distance)
    p, q = target.double().softmax(-1), drafter.double().softmax(-1)
    optimum = float(torch.minimum(p, q).sum())
    share = accepted_share(target, drafter, draft_seed_shift=0)
    exact = float(coupled_joint(p, q).diagonal().sum())
    assert share == pytest.approx(exact, abs=5 * 0.5 / NUM_DRAWS**0.5)
    assert share > 0.93 * optimum


def test_drafts_with_noise_of_their_own_are_accepted_far_less_often() -> None:
    target, drafter = synthetic_pair(0.5)
    p, q = target.double().softmax(-1), drafter.double().softmax(-1)
    share = accepted_share(target, drafter, draft_seed_shift=10**6)
    assert share == pytest.approx(float((p * q).sum()), abs=5 * 0.5 / NUM_DRAWS**0.5)
    assert share < 0.5 * float(torch.minimum(p, q).sum())


def test_draft_and_target_share_the_noise_of_a_position() -> None:
    model = TableModel.random(50, 3)
    requests = [make_request(name=str(s), seed=s) for s in range(200)]
    batch = SamplingBatch.build(requests, 3, 50)
    drafts = propose(requests, model, Sampler(50), batch, 3)
    plain = generate(requests, model, None, num_draft_tokens=0, num_new_tokens=3)
    assert drafts.tolist() == plain
