"""Prices of passes: the table's, until steps say otherwise."""

from __future__ import annotations

import random

import pytest

from engine.speculative.host_times import Drafting, HostTimes
from engine.speculative.pass_prices import Chains, Line, PassPrices
from engine.speculative.step_costs import CostGrid, StepCosts


def flat(seconds: float) -> CostGrid:
    return CostGrid([1, 64], [1, 9], [[seconds, seconds], [seconds, seconds]])


def test_the_table_holds_until_something_was_seen() -> None:
    line = Line()
    assert line.at(0.005) == 0.005


def test_a_machine_that_is_slower_is_slower_in_proportion() -> None:
    line = Line()
    for _ in range(50):
        line.observe(0.01, 0.018)
    assert line.at(0.01) == pytest.approx(0.018)
    assert line.at(0.02) == pytest.approx(0.036)


def test_a_constant_part_is_found_where_passes_differ() -> None:
    line, rng = Line(), random.Random(2)
    for _ in range(2000):
        seconds = rng.uniform(0.01, 0.03)
        line.observe(seconds, 0.004 + 1.5 * seconds)
    assert line.slope == pytest.approx(1.5, rel=0.05)
    assert line.start == pytest.approx(0.004, rel=0.2)


def test_one_step_that_was_held_up_changes_little() -> None:
    line = Line()
    for _ in range(50):
        line.observe(0.01, 0.01)
    line.observe(0.01, 10.0)
    assert line.at(0.01) < 0.011


def test_a_step_is_priced_by_its_passes() -> None:
    prices = PassPrices(StepCosts(flat(0.010), flat(0.001)))
    for _ in range(100):
        prices.observe(
            2, 6, 4, Chains([3, 1], Drafting.FREE), draft_seconds=0.006, target_seconds=0.030
        )
    assert prices.target_pass(2, 6) == pytest.approx(0.030, rel=0.01)
    # Three passes of 1 ms by the table took 6 ms.
    assert prices.draft_pass(1, Drafting.FREE) == pytest.approx(0.002, rel=0.1)


def test_a_step_is_dearer_by_what_the_host_does_beside_its_passes() -> None:
    prices = PassPrices(StepCosts(flat(0.010), flat(0.001)))
    assert prices.plain_step(2) == prices.target_pass(2, 2)
    prices.host.observe(2, 0.005, Drafting.NONE)
    assert prices.plain_step(2) == pytest.approx(0.015)


@pytest.mark.parametrize("plain_every", [2, 16, 128])
def test_verifying_may_be_dearer_than_the_table_says_whatever_the_machine_does(
    plain_every: int,
) -> None:
    prices, pace = PassPrices(StepCosts(flat(0.010), flat(0.001))), 1.0
    rng = random.Random(4)
    for step in range(40 * plain_every):
        pace *= rng.uniform(0.99, 1.01)
        if step % plain_every:
            chains = Chains([2, 2], Drafting.FREE)
            prices.observe(2, 6, 3, chains, draft_seconds=0.002, target_seconds=0.0125 * pace)
        else:
            prices.observe(2, 2, 1, Chains([], Drafting.FREE), 0.0, 0.010 * pace)
    assert prices.target_pass(2, 6) / prices.target_pass(2, 2) == pytest.approx(1.25, rel=0.06)


def test_steps_of_one_kind_alone_say_nothing_of_verifying() -> None:
    prices = PassPrices(StepCosts(flat(0.010), flat(0.001)))
    for _ in range(100):
        prices.observe(2, 2, 1, Chains([], Drafting.FREE), 0.0, 0.014)
    assert prices.verify.factor == 1.0
    assert prices.target_pass(2, 6) == prices.target_pass(2, 2) == pytest.approx(0.014, rel=0.01)


def test_chains_under_a_gate_have_a_price_of_their_own() -> None:
    prices = PassPrices(StepCosts(flat(0.010), flat(0.001)))
    for _ in range(200):
        for drafting, seconds in ((Drafting.FREE, 0.002), (Drafting.GATED, 0.004)):
            prices.observe(1, 3, 3, Chains([2], drafting), seconds, 0.010)
    free, gated = (prices.draft_pass(1, way) for way in (Drafting.FREE, Drafting.GATED))
    assert gated / free == pytest.approx(2.0, rel=0.1)
    # One that was never seen is taken for the other.
    known = PassPrices(StepCosts(flat(0.010), flat(0.001)))
    for _ in range(200):
        known.observe(1, 3, 3, Chains([2], Drafting.GATED), 0.004, 0.010)
    assert known.draft_pass(1, Drafting.FREE) == known.draft_pass(1, Drafting.GATED) > 0.0015


def test_host_times_are_means_by_requests_and_kind() -> None:
    host = HostTimes()
    assert host.of(4, Drafting.NONE) == host.of(4, Drafting.GATED) == 0.0
    host.observe(2, 0.010, Drafting.NONE)
    assert host.of(12, Drafting.NONE) == pytest.approx(0.020)
    # Of steps with drafts nothing is known yet.
    assert host.of(2, Drafting.GATED) == pytest.approx(0.010)
    for _ in range(500):
        host.observe(2, 0.030, Drafting.GATED)
    assert host.of(2, Drafting.GATED) == pytest.approx(0.030)
    assert host.of(2, Drafting.NONE) == pytest.approx(0.010)


def test_a_step_that_the_host_held_up_hardly_moves_its_mean() -> None:
    host = HostTimes()
    for _ in range(100):
        host.observe(1, 0.001, Drafting.NONE)
    host.observe(1, 10.0, Drafting.NONE)
    assert host.of(1, Drafting.NONE) < 0.0011
    # Where a device ran ahead the host takes nothing, until it does.
    idle = HostTimes()
    idle.observe(1, 0.0, Drafting.NONE)
    for _ in range(500):
        idle.observe(1, 0.001, Drafting.NONE)
    assert idle.of(1, Drafting.NONE) == pytest.approx(0.001, rel=0.01)


def test_a_step_without_drafts_says_nothing_of_the_draft() -> None:
    prices = PassPrices(StepCosts(flat(0.010), flat(0.001)))
    prices.observe(2, 2, 1, Chains([0, 0], Drafting.FREE), draft_seconds=1.0, target_seconds=0.010)
    assert prices.draft_pass(1, Drafting.FREE) == 0.001


def test_what_a_pass_costs_does_not_depend_on_what_was_asked_before() -> None:
    falling = [[4.0, 9.0, 8.0], [5.0, 7.0, 20.0]]
    at_once = CostGrid([1, 8], [1, 3, 9], falling)
    step_by_step = CostGrid([1, 8], [1, 3, 9], falling)
    asked = [list(step_by_step.by_rows(4, num_rows)) for num_rows in (0, 3, 5, 40)]
    assert asked[-1] == at_once.by_rows(4, 40)
    assert asked[-1] == sorted(asked[-1])
    assert [len(column) for column in asked] == [1, 4, 6, 41]
