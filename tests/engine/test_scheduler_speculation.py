"""Drafts in the schedule: how many, at whose cost, and a draft model that lags behind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.draft_planner import DraftPlan, DraftRoom
from engine.request import DRAFT_MODEL, FinishReason, TokenLogprobs
from engine.step import ModelOutput, RequestOutcome
from tests.doubles import count_speculation
from tests.engine.fake_model import (
    BLOCK_SIZE,
    FakeModel,
    answer_of,
    expected_answer,
    make_request,
    make_scheduler,
    run_step,
    run_to_end,
)


def test_blocks_of_rejected_drafts_are_given_back() -> None:
    scheduler = make_scheduler(num_draft_tokens=4)
    model = FakeModel(BLOCK_SIZE, acceptance=0.0)
    request = make_request("a", [5])
    scheduler.add(request)
    run_step(scheduler, model)
    (share,) = scheduler.schedule().scheduled
    assert len(share.block_ids) == 2
    run_step(scheduler, model)
    assert len(scheduler.kv.block_ids(request)) == 1


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("has_draft", [False, True])
def test_drafts_change_no_answer(acceptance: float, has_draft: bool) -> None:
    scheduler = make_scheduler(num_draft_tokens=4, has_draft=has_draft)
    model = FakeModel(BLOCK_SIZE, has_draft, acceptance=acceptance)
    requests = [make_request(name, 9, max_tokens=40) for name in "abcd"]
    for request in requests:
        scheduler.add(request)
    deltas = run_to_end(scheduler, model)
    for request in requests:
        told = deltas[request.request_id]
        assert answer_of(told) == expected_answer(request, request.max_total_tokens)


def test_draft_tokens_never_exceed_what_the_answer_still_needs() -> None:
    scheduler = make_scheduler(num_draft_tokens=4)
    model = FakeModel(BLOCK_SIZE, acceptance=0.0)
    scheduler.add(make_request("a", [5], max_tokens=7))
    num_drafts = []
    while scheduler.has_unfinished:
        output = scheduler.schedule()
        num_drafts += [share.num_draft_tokens for share in output.scheduled]
        scheduler.update(output, model.run(output))
    assert num_drafts == [0, 4, 4, 3, 2, 1, 0]


def test_a_prompt_chunk_has_no_drafts() -> None:
    scheduler = make_scheduler(num_draft_tokens=4, max_num_batched_tokens=8)
    scheduler.add(make_request("a", 20))
    (share,) = scheduler.schedule().scheduled
    assert (share.num_tokens, share.num_draft_tokens) == (8, 0)


def test_drafts_share_the_budget_but_leave_everyone_a_token() -> None:
    scheduler = make_scheduler(num_draft_tokens=4, max_num_batched_tokens=7)
    for name in "abc":
        scheduler.add(make_request(name, 2, max_tokens=30))
    run_step(scheduler, FakeModel(BLOCK_SIZE))
    output = scheduler.schedule()
    assert [(s.num_tokens, s.num_draft_tokens) for s in output.scheduled] == [
        (1, 4),
        (1, 0),
        (1, 0),
    ]
    assert output.num_tokens == 7


def test_a_draft_that_saw_everything_accepted_catches_up_on_one_token() -> None:
    scheduler = make_scheduler(num_draft_tokens=3, has_draft=True)
    model = FakeModel(BLOCK_SIZE, has_draft=True, acceptance=1.0)
    request = make_request("a", [5, 6], max_tokens=30)
    scheduler.add(request)
    run_step(scheduler, model)
    run_step(scheduler, model)
    assert request.num_computed_tokens == request.num_draft_computed_tokens + 1
    (share,) = scheduler.schedule().scheduled
    assert (share.num_catch_up_tokens, share.num_draft_tokens) == (1, 3)
    assert share.is_draft_current


def test_a_draft_that_lags_far_behind_catches_up_under_the_budget_before_it_drafts() -> None:
    scheduler = make_scheduler(num_draft_tokens=3, has_draft=True, max_num_batched_tokens=8)
    model = FakeModel(BLOCK_SIZE, has_draft=True)
    request = make_request("a", 9, max_tokens=30)
    scheduler.add(request)
    run_step(scheduler, model)
    run_step(scheduler, model)
    request.num_draft_computed_tokens = 0
    seen = []
    for _ in range(2):
        output = scheduler.schedule()
        (share,) = output.scheduled
        seen.append((share.num_catch_up_tokens, share.num_draft_tokens))
        scheduler.update(output, model.run(output))
    assert seen == [(7, 0), (3, 3)]


def test_a_lagging_draft_catches_up_during_prefill_too() -> None:
    scheduler = make_scheduler(num_draft_tokens=3, has_draft=True, max_num_batched_tokens=8)
    model = FakeModel(BLOCK_SIZE, has_draft=True)
    request = make_request("a", 20)
    scheduler.add(request)
    run_step(scheduler, model)
    request.num_draft_computed_tokens = 5
    (share,) = scheduler.schedule().scheduled
    assert (share.num_catch_up_tokens, share.num_tokens) == (3, 5)


def test_no_drafts_beyond_what_the_draft_model_can_hold() -> None:
    scheduler = make_scheduler(num_draft_tokens=4, has_draft=True, draft_max_len=12)
    model = FakeModel(BLOCK_SIZE, True, 12, acceptance=1.0)
    request = make_request("a", 10, max_tokens=20)
    scheduler.add(request)
    stats = count_speculation(run_to_end(scheduler, model)["a"])
    assert stats.num_draft_tokens <= 4
    assert stats.num_output_tokens == len(expected_answer(request, request.max_total_tokens))


def test_a_block_that_the_draft_has_not_computed_is_not_published() -> None:
    scheduler = make_scheduler(num_draft_tokens=2, has_draft=True)
    prompt = list(range(50, 62))
    scheduler.add(make_request("a", prompt))
    output = scheduler.schedule()
    scheduler.update(output, ModelOutput([RequestOutcome([7], num_draft_computed_tokens=5)]))
    late = make_request("b", prompt)
    scheduler.add(late)
    scheduler.schedule()
    assert late.num_cached_tokens == BLOCK_SIZE


class RestingPlanner:
    """A controller that gave its model up, until it is told to draft."""

    num_draft_tokens = 0

    @property
    def draft_rests(self) -> bool:
        return self.num_draft_tokens == 0

    def wakes(self) -> bool:
        return True

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        return [DraftPlan(None, self.num_draft_tokens) for _ in rooms]


def test_what_the_target_computed_while_the_draft_rested_is_found_and_caught_up() -> None:
    planner = RestingPlanner()
    scheduler = make_scheduler(num_draft_tokens=3, has_draft=True, planner=planner)
    model = FakeModel(BLOCK_SIZE, has_draft=True, acceptance=1.0)
    prompt = list(range(50, 63))
    scheduler.add(make_request("a", prompt))
    run_to_end(scheduler, model)
    late = make_request("b", prompt, max_tokens=12)
    scheduler.add(late)
    run_step(scheduler, model)
    assert (late.num_cached_tokens, late.num_draft_computed_tokens) == (12, 0)
    planner.num_draft_tokens = 3
    (share,) = (output := scheduler.schedule()).scheduled
    assert (share.num_catch_up_tokens, share.num_draft_tokens) == (13, 3)
    scheduler.update(output, model.run(output))
    run_to_end(scheduler, model)
    last = make_request("c", prompt)
    scheduler.add(last)
    run_step(scheduler, model)
    assert (last.num_cached_tokens, last.num_draft_computed_tokens) == (12, 13)


def test_a_prefix_longer_than_the_draft_is_published_once_the_draft_is_full() -> None:
    scheduler = make_scheduler(num_draft_tokens=2, has_draft=True, draft_max_len=6)
    model = FakeModel(BLOCK_SIZE, True, 6)
    prompt = list(range(50, 63))
    scheduler.add(make_request("a", prompt))
    run_to_end(scheduler, model)
    late = make_request("b", prompt)
    scheduler.add(late)
    run_to_end(scheduler, model)
    assert late.num_cached_tokens == 12


def test_a_stop_inside_accepted_drafts_cuts_the_rest_from_answer_and_counts() -> None:
    scheduler = make_scheduler(num_draft_tokens=3)
    request = make_request("a", [5], stop_token_ids=(41,))
    scheduler.add(request)
    first = scheduler.schedule()
    scheduler.update(first, ModelOutput([RequestOutcome([40])]))
    logprobs = [TokenLogprobs(-1.0, 1, []) for _ in range(4)]
    outcome = RequestOutcome(
        [40, 41, 42, 43], num_draft_tokens=3, num_accepted_tokens=3, logprobs=logprobs
    )
    (delta,) = scheduler.update(scheduler.schedule(), ModelOutput([outcome]))
    assert delta.new_token_ids == [40, 41]
    assert delta.logprobs == logprobs[:2]
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, 41)
    assert (delta.num_draft_tokens, delta.num_accepted_tokens) == (3, 2)
    assert delta.drafter == DRAFT_MODEL
    scheduler.kv.check_invariants()
