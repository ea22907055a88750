"""Peers' best ways, ratios of ours over them, and how far answers agree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.peers.comparison import (
    Agreement,
    Failure,
    Lane,
    Measured,
    Plan,
    agreement,
    measure,
)
from benchmarks.peers.comparison_tables import best_way, ratios, tables
from benchmarks.peers.protocol import Answers, Loaded, Run
from benchmarks.peers.ways import Way
from engine.errors import EngineError

OFF = Way("ours", "off", "ours")
AUTO = Way("ours", "auto", "ours", speculates=True)
SLOW = Way("peer", "slow", "peer")
FAST = Way("peer", "fast", "peer")
DRAFT = Way("peer", "draft", "peer", speculates=True)


def measured(way: Way, rates: Sequence[float], concurrency: int = 1) -> Measured:
    """Give a point of 100 tokens a run."""
    return Measured(way, "float32", concurrency, 100, seconds=[100 / rate for rate in rates])


POINTS = [
    measured(OFF, [100, 90, 110]),
    measured(AUTO, [200, 200, 200]),
    measured(SLOW, [40, 40, 40]),
    measured(FAST, [50, 90, 50]),
    measured(DRAFT, [45, 45, 45]),
]


def test_the_best_way_is_the_one_with_the_highest_median() -> None:
    best = best_way(POINTS, "peer", may_speculate=False)
    assert best is not None
    assert best.way == FAST
    assert best_way(POINTS, "nobody", may_speculate=True) is None


def test_a_peer_whose_drafts_do_not_pay_is_taken_without_them() -> None:
    plain, best = ratios(POINTS)
    assert (plain.own_way, plain.way, plain.may_speculate) == ("off", "fast", False)
    assert (best.own_way, best.way, best.may_speculate) == ("auto", "fast", True)


def test_ratios_are_taken_within_each_repeat() -> None:
    ratio = ratios(POINTS)[0]
    assert ratio.ratio == pytest.approx(2.0)
    assert ratio.spread == pytest.approx((1.0, 2.2))


def test_without_drafts_nothing_is_said_of_them() -> None:
    assert [r.may_speculate for r in ratios([measured(OFF, [1.0]), measured(FAST, [2.0])])] == [
        False
    ]


def test_a_lane_that_failed_at_a_load_is_told_so() -> None:
    speeds, *_ = tables([*POINTS, measured(OFF, [10.0], concurrency=8)])
    at_8 = list(speeds.columns[2].cells)
    assert at_8 == ["10.0\n10.0-10.0", *["failed"] * 4]


def test_answers_agree_as_far_as_the_first_token_that_differs() -> None:
    found = agreement([[1, 2, 3], [4, 0, 6]], [[1, 2, 3], [4, 5, 6]])
    assert found == Agreement(num_equal=1, num_answers=2, common_share=pytest.approx(4 / 6))


class ScriptedWorker:
    """Takes part in a comparison without a process; says when it was asked."""

    def __init__(self, name: str, asked: list[str], fails_at: int | None = None) -> None:
        self.name = name
        self._asked = asked
        self._fails_at = fails_at

    def run(self, run: Run) -> Answers:
        """Answer with zeros."""
        self._asked.append(self.name)
        if run.concurrency == self._fails_at:
            raise EngineError(f"{self.name}: no")
        return Answers(seconds=2.0, token_ids=[[0] * run.max_tokens for _ in run.prompts])

    def pause(self) -> None:
        """Do nothing."""

    def go_on(self) -> None:
        """Do nothing."""

    def cpu_seconds(self) -> float:
        """Give none."""
        return 0.0


def lanes_of(asked: list[str], fails_at: int | None) -> list[Lane]:
    """Give ours and a peer that may fail."""
    loaded = Loaded(seconds=1.0, versions={}, settings={})
    peer = ScriptedWorker("peer", asked, fails_at)
    return [
        Lane(OFF, ScriptedWorker("ours", asked), loaded),
        Lane(FAST, peer, loaded),
    ]


def plan(temperature: float = 0.0) -> Plan:
    """Give two loads, two repeats."""
    return Plan(
        prompts=[[1], [2], [3]],
        concurrencies=(1, 2),
        rounds=2,
        max_tokens=4,
        temperature=temperature,
        repeats=2,
    )


def test_lanes_take_turns_and_the_first_turn_warms_up() -> None:
    asked: list[str] = []
    points = measure(lanes_of(asked, None), "float32", plan(), [], lambda _: None)
    assert asked == ["ours", "peer"] * 6
    assert [(p.way.peer, p.concurrency, p.num_tokens) for p in points] == [
        ("ours", 1, 8), ("peer", 1, 8), ("ours", 2, 16), ("peer", 2, 16)
    ]  # fmt: skip
    assert all(point.seconds == [2.0, 2.0] for point in points)
    assert all(point.agreement and point.agreement.common_share == 1.0 for point in points)


def test_a_lane_that_fails_leaves_the_others_alone() -> None:
    failures: list[Failure] = []
    points = measure(lanes_of([], 1), "float32", plan(), failures, lambda _: None)
    assert [point.way for point in points] == [OFF, OFF]
    assert [(failure.way, failure.said) for failure in failures] == [(FAST, "peer: no")]


def test_drawn_answers_are_not_compared() -> None:
    points = measure(lanes_of([], None), "float32", plan(1.0), [], lambda _: None)
    assert [point.agreement for point in points] == [None] * 4


def test_prompts_are_taken_in_turn() -> None:
    assert plan().run_of(2).prompts == [[1], [2], [3], [1]]
