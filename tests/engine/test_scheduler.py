"""The scheduler: one budget, who runs when, what is said, and ends of every kind."""

from __future__ import annotations

import pytest

from engine.config import SchedulerConfig
from engine.errors import InvalidRequestError
from engine.kv_cache.manager import KVCacheManager
from engine.request import FinishReason
from engine.scheduler import Scheduler
from engine.step import ModelOutput, RequestOutcome
from tests.engine.fake_model import (
    FakeModel,
    answer_of,
    expected_answer,
    make_request,
    run_step,
    run_to_end,
)

BLOCK_SIZE = 4


def make_scheduler(
    *,
    num_blocks: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    num_draft_tokens: int = 0,
    has_draft: bool = False,
    max_model_len: int = 200,
    draft_max_len: int | None = None,
) -> Scheduler:
    return Scheduler(
        SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens),
        KVCacheManager(num_blocks, BLOCK_SIZE),
        num_draft_tokens=num_draft_tokens,
        has_draft=has_draft,
        max_model_len=max_model_len,
        draft_max_len=draft_max_len,
        clock=lambda: 1.0,
    )


def test_an_idle_scheduler_gives_an_empty_step() -> None:
    scheduler = make_scheduler()
    output = scheduler.schedule()
    assert output.scheduled == []
    assert scheduler.update(output, ModelOutput([])) == []
    assert not scheduler.has_unfinished


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler, model = make_scheduler(max_num_batched_tokens=8), FakeModel(BLOCK_SIZE)
    request = make_request("a", 20)
    scheduler.add(request)
    for num_computed in (8, 16):
        assert run_step(scheduler, model) == []
        assert request.num_computed_tokens == num_computed
    (delta,) = run_step(scheduler, model)
    assert delta.new_token_ids == expected_answer(request, request.max_total_tokens)[:1]


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    scheduler, model = make_scheduler(max_num_batched_tokens=8), FakeModel(BLOCK_SIZE)
    scheduler.add(make_request("short", [1, 2, 3]))
    run_step(scheduler, model)
    scheduler.add(make_request("long", 30))
    output = scheduler.schedule()
    assert [(s.request.request_id, s.num_tokens) for s in output.scheduled] == [
        ("short", 1),
        ("long", 7),
    ]


def test_decoding_shares_come_before_prefill_whatever_their_urgency() -> None:
    scheduler, model = make_scheduler(max_num_batched_tokens=8), FakeModel(BLOCK_SIZE)
    scheduler.add(make_request("late", [1, 2, 3], arrival_time=2.0))
    run_step(scheduler, model)
    scheduler.add(make_request("early", 30, arrival_time=1.0))
    run_step(scheduler, model)
    output = scheduler.schedule()
    assert [s.request.request_id for s in output.scheduled] == ["late", "early"]


def test_admits_as_many_as_there_are_seats() -> None:
    scheduler, model = make_scheduler(max_num_seqs=2), FakeModel(BLOCK_SIZE)
    for name in "abc":
        scheduler.add(make_request(name, 3))
    run_step(scheduler, model)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    run_to_end(scheduler, model)
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


@pytest.mark.parametrize("max_num_batched_tokens", [1, 2, 7, 64])
def test_any_budget_gives_the_same_answers(max_num_batched_tokens: int) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=max_num_batched_tokens)
    requests = [make_request(name, size) for name, size in zip("abc", (1, 9, 14), strict=True)]
    limits = [request.max_total_tokens for request in requests]
    for request in requests:
        scheduler.add(request)
    deltas = run_to_end(scheduler, FakeModel(BLOCK_SIZE))
    for request, limit in zip(requests, limits, strict=True):
        assert answer_of(deltas[request.request_id]) == expected_answer(request, limit)


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
    run_to_end(scheduler, model)
    stats = request.stats
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


def test_says_nothing_while_a_prompt_is_being_computed() -> None:
    scheduler, model = make_scheduler(max_num_batched_tokens=4), FakeModel(BLOCK_SIZE)
    scheduler.add(make_request("a", 12))
    assert run_step(scheduler, model) == []
    assert run_step(scheduler, model) == []
    assert len(run_step(scheduler, model)) == 1


def test_only_the_last_delta_says_why_the_request_ended() -> None:
    scheduler, model = make_scheduler(), FakeModel(BLOCK_SIZE)
    request = make_request("a", 9, max_tokens=3)
    scheduler.add(request)
    *before, last = run_to_end(scheduler, model)["a"]
    assert all(delta.finish_reason is None and delta.stats is None for delta in before)
    assert last.finish_reason is FinishReason.LENGTH
    assert last.stats is request.stats
    assert last.num_cached_tokens == 0


def test_a_stop_inside_accepted_drafts_cuts_the_rest_from_answer_and_counts() -> None:
    scheduler = make_scheduler(num_draft_tokens=3)
    request = make_request("a", [5], stop_token_ids=(41,))
    scheduler.add(request)
    first = scheduler.schedule()
    scheduler.update(first, ModelOutput([RequestOutcome([40])]))
    outcome = RequestOutcome([40, 41, 42, 43], num_draft_tokens=3, num_accepted_tokens=3)
    (delta,) = scheduler.update(scheduler.schedule(), ModelOutput([outcome]))
    assert delta.new_token_ids == [40, 41]
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, 41)
    assert request.stats.num_accepted_tokens == 2
    assert request.stats.num_output_tokens == 3
    assert request.stats.num_draft_tokens == 3
    scheduler.kv.check_invariants()


def test_an_error_in_one_outcome_ends_that_request_alone() -> None:
    scheduler = make_scheduler()
    for name in "ab":
        scheduler.add(make_request(name, [5]))
    outcomes = [RequestOutcome([], error="NaN logits"), RequestOutcome([9])]
    failed, alive = scheduler.update(scheduler.schedule(), ModelOutput(outcomes))
    assert (failed.finish_reason, failed.error) == (FinishReason.ERROR, "NaN logits")
    assert alive.finish_reason is None
    assert list(scheduler.requests) == ["b"]
    scheduler.kv.check_invariants()


@pytest.mark.parametrize("num_steps", [0, 1, 2, 4])
def test_abort_ends_a_request_in_any_state_and_frees_its_blocks(num_steps: int) -> None:
    scheduler, model = make_scheduler(max_num_batched_tokens=8), FakeModel(BLOCK_SIZE)
    scheduler.add(make_request("a", 12, max_tokens=30))
    for _ in range(num_steps):
        run_step(scheduler, model)
    assert scheduler.abort("a")
    assert scheduler.kv.usage == 0.0
    assert not scheduler.abort("a")
    (delta,) = run_step(scheduler, model)
    assert delta.finish_reason is FinishReason.ABORT
    assert delta.stats is not None
    assert not scheduler.has_unfinished


def test_the_outcome_of_a_request_aborted_during_the_step_is_ignored() -> None:
    scheduler, model = make_scheduler(), FakeModel(BLOCK_SIZE)
    for name in "ab":
        scheduler.add(make_request(name, [5]))
    output = scheduler.schedule()
    assert scheduler.abort("a")
    again = make_request("a", [6])
    scheduler.add(again)
    deltas = scheduler.update(output, model.run(output))
    scheduler.kv.check_invariants()
    assert [(d.request_id, len(d.new_token_ids)) for d in deltas] == [("a", 0), ("b", 1)]
    assert again.num_output_tokens == 0
    assert scheduler.requests["a"] is again


def test_aborting_an_unknown_request_says_so() -> None:
    assert not make_scheduler().abort("nobody")


def test_refuses_a_second_request_of_the_same_id() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 3))
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        scheduler.add(make_request("a", 3))


def test_a_prompt_that_can_never_fit_ends_with_the_numbers() -> None:
    scheduler = make_scheduler(num_blocks=8)
    scheduler.add(make_request("a", 29))
    (delta,) = run_step(scheduler, FakeModel(BLOCK_SIZE))
    assert delta.finish_reason is FinishReason.ERROR
    assert delta.error is not None
    assert "29 tokens" in delta.error
    assert "holds 28" in delta.error


def test_an_answer_that_outgrows_the_whole_cache_ends_with_the_numbers() -> None:
    scheduler = make_scheduler(num_blocks=3)
    scheduler.add(make_request("a", [5, 6, 7], max_tokens=30))
    outcomes = [RequestOutcome([9])]
    deltas = []
    while scheduler.has_unfinished:
        deltas += scheduler.update(scheduler.schedule(), ModelOutput(outcomes))
    assert len(answer_of(deltas)) == 6
    assert deltas[-1].error is not None
    assert "9 tokens" in deltas[-1].error
    assert scheduler.kv.usage == 0.0


def test_a_request_with_no_room_for_an_answer_ends_at_once() -> None:
    scheduler = make_scheduler(max_model_len=5)
    scheduler.add(make_request("a", 5))
    (delta,) = run_step(scheduler, FakeModel(BLOCK_SIZE))
    assert delta.finish_reason is FinishReason.LENGTH
    assert delta.new_token_ids == []


def test_a_request_arrives_when_it_is_added_unless_it_says_otherwise() -> None:
    scheduler = make_scheduler()
    unstamped, stamped = make_request("a", 3), make_request("b", 3, arrival_time=0.5)
    scheduler.add(unstamped)
    scheduler.add(stamped)
    assert (unstamped.arrival_time, stamped.arrival_time) == (1.0, 0.5)
