"""Drafts that need no model: scheduled, verified and told like any other, and never text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.draft_planner import MAX_KNOWN_DRAFT_TOKENS
from engine.request import DRAFT_MODEL, PREDICTION, Request, RequestDelta
from engine.sampling_params import SamplingParams
from engine.step import KnownDraft, ModelOutput, RequestOutcome
from tests.doubles import count_speculation
from tests.engine.fake_model import make_request, make_scheduler
from tests.tiny_models import (
    add,
    drain,
    generate,
    greedy,
    make_core,
    random_prompts,
    seeded,
    tiny_llama,
    tokens_of,
)

PROMPTS = random_prompts(4)
NUM_TOKENS = 40


def answers(params: SamplingParams) -> list[list[int]]:
    """What is written without any draft."""
    return generate(make_core(tiny_llama()), PROMPTS, params)


def predicting(params: SamplingParams, predicted: list[int]) -> SamplingParams:
    return replace(params, predicted_token_ids=tuple(predicted))


def run_one(draft_seed: int | None, params: SamplingParams, **config: object) -> list[RequestDelta]:
    draft = None if draft_seed is None else tiny_llama(draft_seed)
    core = make_core(tiny_llama(), draft, **config)
    add(core, PROMPTS[0], params, "a")
    return drain(core)["a-0"]


@pytest.mark.parametrize("make", [greedy, seeded])
@pytest.mark.parametrize("draft_seed", [None, 0, 1], ids=["no_draft", "good", "random"])
def test_predictions_change_no_words(make: object, draft_seed: int | None) -> None:
    params = make(NUM_TOKENS)  # type: ignore[operator]
    plain = answers(params)
    wrong = [token + 1 for token in plain[0]]
    edited = [*plain[1][:10], 3, 4, *plain[1][12:]]
    predictions = [plain[0], edited, wrong, []]
    config = {} if draft_seed is None else {"speculation": 3}
    core = make_core(tiny_llama(), None if draft_seed is None else tiny_llama(draft_seed), **config)
    settings = [predicting(params, predicted) for predicted in predictions]
    assert generate(core, PROMPTS, settings) == plain
    assert core.kv.usage == 0.0


def test_a_right_prediction_needs_few_passes_and_no_draft_model() -> None:
    (plain, *_) = answers(greedy(NUM_TOKENS))
    deltas = run_one(None, predicting(greedy(NUM_TOKENS), plain))
    stats = count_speculation(deltas)
    assert tokens_of(deltas) == plain
    assert stats.num_target_passes == 4  # 1 for the prompt, then 17, 17 and the rest
    assert stats.num_accepted_tokens == stats.num_draft_tokens == NUM_TOKENS - 4
    assert {delta.drafter for delta in deltas} == {None, PREDICTION}


def test_the_draft_model_takes_over_where_the_prediction_has_nothing_to_say() -> None:
    (plain, *_) = answers(greedy(NUM_TOKENS))
    deltas = run_one(0, predicting(greedy(NUM_TOKENS), plain[:20]), speculation=4)
    assert tokens_of(deltas) == plain
    assert [d.drafter for d in deltas if d.drafter][-1] == DRAFT_MODEL
    assert PREDICTION in {delta.drafter for delta in deltas}
    stats = count_speculation(d for d in deltas if d.drafter == DRAFT_MODEL)
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 0, "the lag was not caught up"


def test_speculation_off_ignores_predictions() -> None:
    (plain, *_) = answers(greedy(NUM_TOKENS))
    deltas = run_one(None, predicting(greedy(NUM_TOKENS), plain), speculation=0)
    assert count_speculation(deltas).num_draft_tokens == 0


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (2, 2), (9, 4)])
def test_a_request_can_lower_its_number_of_drafts(limit: int, expected: int) -> None:
    params = greedy(NUM_TOKENS, max_draft_tokens=limit)
    deltas = run_one(0, params, speculation=4)
    assert tokens_of(deltas) == answers(greedy(NUM_TOKENS))[0]
    assert max(delta.num_draft_tokens for delta in deltas) == expected


def test_known_drafts_are_cut_to_what_the_answer_still_needs() -> None:
    asked: list[int] = []

    def known(request: Request, limit: int) -> list[KnownDraft]:
        asked.append(limit)
        return [KnownDraft(list(range(limit)), PREDICTION, [1.0] * limit)]

    scheduler = make_scheduler(known_drafts=known)
    scheduler.add(make_request("a", [5], max_tokens=30))
    scheduler.update(scheduler.schedule(), ModelOutput([RequestOutcome([9])]))
    step = scheduler.schedule()
    assert step.scheduled[0].num_draft_tokens == MAX_KNOWN_DRAFT_TOKENS
    outcome = RequestOutcome([9] * 17, num_draft_tokens=16, num_accepted_tokens=16)
    scheduler.update(step, ModelOutput([outcome]))
    step = scheduler.schedule()
    assert asked == [16, 30 - 18 - 1]
    assert step.scheduled[0].num_draft_tokens == 11


def test_known_drafts_ask_for_no_catch_up() -> None:
    scheduler = make_scheduler(
        num_draft_tokens=3,
        has_draft=True,
        known_drafts=lambda _request, _limit: [KnownDraft([1, 2], PREDICTION, [0.9, 0.8])],
    )
    scheduler.add(make_request("a", [5, 6, 7]))
    scheduler.update(scheduler.schedule(), ModelOutput([RequestOutcome([9])]))
    (share,) = scheduler.schedule().scheduled
    assert (share.num_draft_tokens, share.num_catch_up_tokens) == (2, 0)
    assert share.drafter == PREDICTION
