"""The door: limits are checked once, with the numbers, before anything reaches the engine."""

from __future__ import annotations

import pytest

from engine.client.messages import AddRequests, NewRequest, encoder, to_engine_decoder
from engine.door import ModelInfo, make_requests
from engine.errors import ContextLengthExceededError, InvalidRequestError
from engine.request import FinishReason
from engine.sampling_params import SamplingParams


def model_info(**changes: object) -> ModelInfo:
    values: dict[str, object] = {
        "model_name": "tiny",
        "max_model_len": 32,
        "vocab_size": 100,
        "eos_token_ids": frozenset({2}),
        "has_draft": False,
        "num_draft_tokens": 0,
        "num_blocks": 9,
        "block_size": 16,
    }
    return ModelInfo(**(values | changes))  # type: ignore[arg-type]


def test_makes_one_request_per_choice_with_the_same_seed() -> None:
    requests = make_requests(
        [5, 6], SamplingParams(n=3, max_tokens=4), request_id="r", info=model_info(), priority=2
    )
    assert [request.request_id for request in requests] == ["r-0", "r-1", "r-2"]
    assert [request.choice_index for request in requests] == [0, 1, 2]
    assert len({request.params.seed for request in requests}) == 1
    assert requests[0].params.seed is not None
    assert {request.priority for request in requests} == {2}
    assert {request.max_total_tokens for request in requests} == {6}
    assert requests[0].eos_token_ids == frozenset({2})


@pytest.mark.parametrize("is_background", [True, False])
def test_background_work_stays_so_on_its_way_to_the_engine(is_background: bool) -> None:
    requests = make_requests(
        [5],
        SamplingParams(n=2, max_tokens=4),
        request_id="r",
        info=model_info(),
        is_background=is_background,
    )
    sent = encoder.encode(AddRequests([NewRequest.of(request) for request in requests]))
    heard = to_engine_decoder.decode(sent)
    assert isinstance(heard, AddRequests)
    assert [new.make().is_background for new in heard.requests] == [is_background] * 2


def test_choices_do_not_share_their_token_lists() -> None:
    first, second = make_requests(
        [5], SamplingParams(n=2, max_tokens=4), request_id="r", info=model_info()
    )
    first.append([7])
    assert second.token_ids == [5]


def test_keeps_the_seed_that_was_given() -> None:
    (request,) = make_requests([5], SamplingParams(seed=7), request_id="r", info=model_info())
    assert request.params.seed == 7


def test_draws_a_different_seed_for_each_call() -> None:
    seeds = {
        make_requests([5], SamplingParams(), request_id="r", info=model_info())[0].params.seed
        for _ in range(4)
    }
    assert len(seeds) == 4


def test_no_max_tokens_means_what_fits() -> None:
    (request,) = make_requests(
        [5] * 10, SamplingParams(max_tokens=None), request_id="r", info=model_info()
    )
    assert request.params.max_tokens == 22
    assert request.max_total_tokens == 32


def test_what_fits_is_bounded_by_the_kv_cache() -> None:
    info = model_info(num_blocks=2)
    (request,) = make_requests([5] * 10, SamplingParams(max_tokens=None), request_id="r", info=info)
    assert request.max_total_tokens == 16


def test_refuses_prompt_and_answer_beyond_the_context() -> None:
    with pytest.raises(ContextLengthExceededError) as caught:
        make_requests([5] * 30, SamplingParams(max_tokens=3), request_id="r", info=model_info())
    message = str(caught.value)
    assert "maximum context length is 32 tokens" in message
    assert "33 tokens" in message
    assert "30 in the prompt, 3 to generate" in message
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_tokens"


def test_refuses_a_prompt_that_leaves_no_room_for_an_answer() -> None:
    with pytest.raises(ContextLengthExceededError, match="maximum context length") as caught:
        make_requests([5] * 32, SamplingParams(max_tokens=None), request_id="r", info=model_info())
    assert caught.value.param == "prompt"


def test_refuses_min_tokens_that_do_not_fit() -> None:
    params = SamplingParams(max_tokens=None, min_tokens=10)
    with pytest.raises(ContextLengthExceededError) as caught:
        make_requests([5] * 25, params, request_id="r", info=model_info())
    assert caught.value.param == "min_tokens"


def test_refuses_a_prompt_that_can_never_fit_the_kv_cache() -> None:
    with pytest.raises(ContextLengthExceededError, match="KV cache holds 16 .1 blocks of 16"):
        make_requests(
            [5] * 20, SamplingParams(max_tokens=4), request_id="r", info=model_info(num_blocks=2)
        )


def test_zero_max_tokens_is_finished_at_once() -> None:
    (request,) = make_requests(
        [5] * 32, SamplingParams(max_tokens=0), request_id="r", info=model_info()
    )
    assert request.is_finished
    assert request.finish_reason is FinishReason.LENGTH


def test_refuses_an_empty_prompt() -> None:
    with pytest.raises(InvalidRequestError, match="no tokens"):
        make_requests([], SamplingParams(), request_id="r", info=model_info())


@pytest.mark.parametrize("token_id", [100, -1])
def test_refuses_token_ids_outside_the_vocabulary(token_id: int) -> None:
    with pytest.raises(InvalidRequestError, match="outside the vocabulary of 100"):
        make_requests([token_id], SamplingParams(), request_id="r", info=model_info())


def test_refuses_sampling_token_ids_outside_the_vocabulary() -> None:
    with pytest.raises(InvalidRequestError, match="logit_bias") as caught:
        make_requests([5], SamplingParams(logit_bias={200: 1.0}), request_id="r", info=model_info())
    assert caught.value.param == "logit_bias"
