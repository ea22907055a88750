"""What to run follows from the numbers, and is said in one sentence."""

from __future__ import annotations

import pytest

from benchmarks.recommendation import mean_speed_ups, recommend, say
from tests.benchmarks.measurements import measurement, over_load

COMMAND = ["outdraft", "serve", "org/target"]


def test_the_drafter_with_the_best_mean_of_auto_is_chosen() -> None:
    measured = [
        *over_load("ngram", None, {1: 2.0, 32: 0.8}),
        *over_load("draft", None, {1: 1.9, 32: 0.99}),
    ]
    best = recommend(measured)
    assert (best.drafter, best.draft_tokens) == ("draft", None)
    assert best.mean_speed_up == pytest.approx((1.9 * 0.99) ** 0.5)
    assert say(best, COMMAND, "org/draft") == (
        "Run `outdraft serve org/target --draft org/draft` (auto): "
        "1.90x at 1 request, never below 0.99x up to 32."
    )


def test_a_static_number_wins_where_it_beats_auto_by_more_than_the_spread_everywhere() -> None:
    measured = [
        *over_load("draft", None, {1: 1.5, 8: 1.1}),
        *over_load("draft", 4, {1: 1.7, 8: 1.3}),
    ]
    best = recommend(measured)
    assert (best.drafter, best.draft_tokens) == ("draft", 4)
    assert say(best, COMMAND, "org/draft") == (
        "Run `outdraft serve org/target --draft org/draft --speculation 4`: "
        "1.70x at 1 request, never below 1.30x up to 8."
    )


@pytest.mark.parametrize("at_load", [1.05, 1.15, 1.19])
def test_auto_stays_where_a_static_number_is_not_clearly_faster_at_one_point(
    at_load: float,
) -> None:
    measured = [
        *over_load("draft", None, {1: 1.5, 8: 1.1}),
        *over_load("draft", 4, {1: 3.0, 8: at_load}),
    ]
    assert recommend(measured).draft_tokens is None


def test_a_static_number_of_another_drafter_may_win() -> None:
    measured = [
        *over_load("draft", None, {1: 1.5}),
        *over_load("ngram", None, {1: 1.4}),
        *over_load("ngram", 8, {1: 2.0}),
    ]
    best = recommend(measured)
    assert (best.drafter, best.draft_tokens) == ("ngram", 8)


def test_off_is_told_where_nobody_gains_2_percent() -> None:
    measured = [
        *over_load("draft", 0, {1: 1.0, 8: 1.0}, spread=0.0),
        *over_load("draft", None, {1: 1.03, 8: 0.99}),
        *over_load("ngram", None, {1: 1.0, 8: 0.97}),
    ]
    best = recommend(measured)
    assert best.is_off
    assert say(best, ["outdraft", "serve"], None) == (
        "Run `outdraft serve --speculation off`: nobody gained 2 % on the whole; "
        "the best was draft (auto), 1.03x at 1 request, never below 0.99x up to 8."
    )


def test_drafting_by_nobody_is_never_recommended() -> None:
    assert recommend([measurement("none", None, 1.2)]).is_off


def test_one_load_tells_the_range_over_temperatures() -> None:
    measured = [
        measurement("draft", None, 1.7, concurrency=4),
        measurement("draft", None, 1.3, concurrency=4, temperature=1.0),
    ]
    assert recommend(measured).describe() == "1.30x to 1.70x at 4 requests"


def test_words_that_a_shell_would_split_are_quoted() -> None:
    sentence = say(recommend([measurement("a b", None, 1.5)]), ["outdraft", "serve"], "a b")
    assert "--draft 'a b'`" in sentence


def test_means_are_those_of_auto() -> None:
    measured = [*over_load("draft", None, {1: 2.0, 2: 0.5}), *over_load("draft", 4, {1: 9.0})]
    assert mean_speed_ups(measured) == {"draft": pytest.approx(1.0)}
