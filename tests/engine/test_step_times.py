"""Step times: learnt size by size, at the machine's pace, and read in between."""

from __future__ import annotations

import random

import pytest

from engine.step_times import StepTimes, next_size


def seen(shape: dict[int, float], *, num_steps: int = 20) -> StepTimes:
    times = StepTimes()
    for _ in range(num_steps):
        for num_tokens, seconds in shape.items():
            times.observe(num_tokens, seconds)
    return times


def test_nothing_is_known_beyond_the_largest_size() -> None:
    assert StepTimes().seconds(1) is None
    assert seen({4: 2.0}).seconds(5) is None


def test_reads_a_line_between_sizes_and_shrinks_below_the_smallest() -> None:
    times = seen({4: 2.0, 8: 3.0})
    assert times.seconds(4) == pytest.approx(2.0)
    assert times.seconds(6) == pytest.approx(2.5)
    assert times.seconds(2) == pytest.approx(1.0)


def test_gives_the_tokens_that_fit_into_a_time() -> None:
    times = seen({1: 1.0, 4: 1.3, 16: 2.5})
    assert times.most_tokens(1.1, least=1) == 2
    assert times.most_tokens(1.9, least=4) == 10
    assert times.most_tokens(1.0, least=4) == 4


def test_goes_one_size_beyond_where_everything_seen_fits() -> None:
    assert seen({1: 1.0, 8: 1.05}).most_tokens(1.1, least=1) == next_size(8) == 10
    assert next_size(1) == 2


def test_what_is_measured_outweighs_what_was_expected() -> None:
    times = StepTimes()
    for num_tokens, seconds in ((1, 1.0), (8, 1.0)):
        times.expect(num_tokens, seconds)
    assert times.most_tokens(1.1, least=1) > 8
    for _ in range(60):
        times.observe(1, 1.0)
        times.observe(8, 2.0)
    seconds = times.seconds(1)
    assert seconds is not None
    assert times.most_tokens(1.1 * seconds, least=1) < 3


def test_a_machine_that_slows_down_does_not_change_which_steps_compare() -> None:
    times = seen({1: 1.0, 8: 1.5}, num_steps=60)
    for _ in range(40):
        times.observe(8, 2.0)  # the large ones alone run while the machine is slow
    one, eight = times.seconds(1), times.seconds(8)
    assert one is not None
    assert eight is not None
    assert eight == pytest.approx(2.0, rel=0.1)
    assert eight / one == pytest.approx(1.5, rel=0.15)


def test_a_step_that_was_held_up_hardly_counts() -> None:
    times = seen({4: 1.0})
    times.observe(4, 500.0)
    seconds = times.seconds(4)
    assert seconds is not None
    assert seconds < 1.2


def test_steps_are_worthwhile_from_where_larger_ones_do_little_more() -> None:
    # Tokens per second: 1, 3.3, 5, 5.3.
    times = seen({1: 1.0, 4: 1.2, 16: 3.2, 64: 12.0})
    assert times.worthwhile_tokens(0.9, limit=64) == 16
    assert times.worthwhile_tokens(0.6, limit=64) == 4
    assert times.worthwhile_tokens(0.9, limit=8) == 8


def test_larger_steps_are_tried_until_the_limit_is_known() -> None:
    assert StepTimes().size_to_try(limit=64) == 1
    assert seen({1: 1.0, 16: 9.0}).size_to_try(limit=64) == 32
    assert seen({1: 1.0, 48: 9.0}).size_to_try(limit=64) == 64
    assert seen({1: 1.0, 64: 1.1}).size_to_try(limit=64) is None


def test_what_was_not_tried_is_not_worthwhile() -> None:
    assert StepTimes().worthwhile_tokens(0.8, limit=64) == 1
    assert seen({1: 1.0, 16: 9.0}).worthwhile_tokens(0.8, limit=64) == 16
    assert seen({1: 1.0, 64: 1.1}).worthwhile_tokens(0.8, limit=64) == 64


def test_one_slow_step_does_not_end_the_trying() -> None:
    times = StepTimes()
    times.observe(1, 1.0)
    assert times.size_to_try(limit=64) == 1
    for _ in range(4):
        times.observe(1, 1.0)
    assert times.size_to_try(limit=64) == 2


def test_answers_stay_within_what_was_asked_whatever_was_seen() -> None:
    draw = random.Random(3)
    for _ in range(200):
        times = StepTimes()
        for _ in range(draw.randrange(1, 40)):
            times.observe(draw.randrange(1, 200), draw.uniform(0.1, 5.0))
        least = draw.randrange(1, 200)
        known = times.seconds(least)
        small, large = sorted((draw.uniform(0.1, 5.0), draw.uniform(0.1, 5.0)))
        assert known is None or known > 0
        assert least <= times.most_tokens(small, least) <= times.most_tokens(large, least)
        assert 1 <= times.worthwhile_tokens(0.8, limit=64) <= 64
