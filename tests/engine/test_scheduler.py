"""The scheduler: one budget, who runs when, what is said, and ends of every kind."""

from __future__ import annotations

import pytest

from engine.errors import InvalidRequestError
from engine.request import FinishReason
from engine.step import ModelOutput, RequestOutcome
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


def test_the_first_token_tells_when_its_request_left_the_queue() -> None:
    now = [100.0]
    scheduler, model = make_scheduler(max_num_batched_tokens=8), FakeModel(BLOCK_SIZE)
    scheduler._clock = lambda: now[0]
    scheduler.add(make_request("a", 12))
    now[0] = 101.0
    assert run_step(scheduler, model) == []
    now[0] = 102.0
    (first,) = run_step(scheduler, model)
    (second,) = run_step(scheduler, model)
    assert (first.scheduled_time, second.scheduled_time) == (101.0, None)


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


def test_a_one_token_prompt_stands_with_the_decoding_shares() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("long", 10))
    scheduler.add(make_request("one", [5]))
    output = scheduler.schedule()
    assert [s.request.request_id for s in output.scheduled] == ["one", "long"]


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
    assert all(delta.finish_reason is None for delta in before)
    assert last.finish_reason is FinishReason.LENGTH
    assert last.num_cached_tokens == 0


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
    assert delta.new_token_ids == []
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
