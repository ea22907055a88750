"""Sampling parameters are within their limits, or refused with the field's own name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRequestError
from engine.sampling_params import MAX_SEED, SamplingParams, from_mapping


def refused(field: str, value: Any) -> InvalidRequestError:
    """Give the error with which one value is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        from_mapping({field: value})
    assert caught.value.param == field
    assert str(caught.value).startswith(f"{field}: ")
    return caught.value


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [1, 128]),
        ("temperature", [0, 0.0, 0.7, 2.0]),
        ("top_p", [1e-9, 0.5, 1, 1.0]),
        ("top_k", [0, 1, 2**31 - 1]),
        ("min_p", [0.0, 1.0]),
        ("repetition_penalty", [0.01, 1.0, 100]),
        ("presence_penalty", [-2.0, 2.0]),
        ("frequency_penalty", [-2, 2]),
        ("seed", [None, 0, MAX_SEED]),
        ("max_tokens", [None, 0, 1]),
        ("logprobs", [None, 0, 20]),
    ],
)
def test_values_within_the_limits_are_kept(field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(from_mapping({field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, 129, 1.0, True, None]),
        ("temperature", [-0.1, 2.1, "hot", math.nan, math.inf, None, False]),
        ("top_p", [0.0, 1.1, math.nan]),
        ("top_k", [-1, 1.5]),
        ("min_p", [-0.1, 1.1]),
        ("repetition_penalty", [0.0, -1.0, 101.0]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("seed", [-1, MAX_SEED + 1, 1.5]),
        ("max_tokens", [-1]),
        ("min_tokens", [-1, None]),
        ("logprobs", [-1, 21]),
    ],
)
def test_values_outside_the_limits_are_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        assert refused(field, value).code == "invalid_value"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", "one text"),
        ("stop", ["fine", ""]),
        ("allowed_token_ids", []),
        ("bad_words_token_ids", [[1, 2], []]),
        ("logit_bias", {5: 101.0}),
        ("logit_bias", {5: math.nan}),
    ],
)
def test_lists_that_make_no_sense_are_refused_by_name(field: str, value: Any) -> None:
    refused(field, value)


def test_unknown_field_is_refused_by_name() -> None:
    assert "unknown" in str(refused("temprature", 1.0))


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens: 5 exceeds max_tokens 4"):
        SamplingParams(min_tokens=5, max_tokens=4)
    assert SamplingParams(min_tokens=5, max_tokens=None).min_tokens == 5


def test_lists_become_tuples_so_that_parameters_can_be_shared() -> None:
    params = from_mapping({"stop": ["a"], "bad_words_token_ids": [[1], [2, 3]]})
    assert params.stop == ("a",)
    assert params.bad_words_token_ids == ((1,), (2, 3))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {8: 1.0}),
        ("allowed_token_ids", (1, 8)),
        ("bad_words_token_ids", ((1, -1),)),
        ("stop_token_ids", (9,)),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused_by_field(field: str, value: Any) -> None:
    params = SamplingParams(**{field: value})
    params.check_vocab(10) if field != "bad_words_token_ids" else None
    with pytest.raises(InvalidRequestError, match=f"{field}: token id .* vocabulary of 8 tokens"):
        params.check_vocab(8)


def test_what_a_request_needs_is_seen_from_its_parameters() -> None:
    plain = SamplingParams(temperature=0.0)
    assert (plain.is_greedy, plain.has_penalties, plain.has_filters) == (True, False, False)
    assert not SamplingParams(temperature=0.1).is_greedy
    for field, value in (
        ("repetition_penalty", 1.1),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -0.1),
    ):
        assert SamplingParams(**{field: value}).has_penalties
    for field, value in (("top_k", 1), ("top_p", 0.9), ("min_p", 0.1)):
        assert SamplingParams(**{field: value}).has_filters


@given(
    temperature=st.floats(0.0, 2.0),
    top_p=st.floats(0.0, 1.0, exclude_min=True),
    min_p=st.floats(0.0, 1.0),
    seed=st.integers(0, MAX_SEED),
)
def test_every_value_within_the_limits_is_accepted(
    temperature: float, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, min_p=min_p, seed=seed)
    assert params.is_greedy == (temperature == 0.0)
