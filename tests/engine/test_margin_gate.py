"""Margins say how likely drafts are accepted, and the gate ends chains that no longer pay."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.speculative.margin_gate import Exchange, MarginGate, MarginSurvival, Verdict
from engine.speculative.pass_prices import PassPrices
from engine.speculative.step_costs import CostGrid, StepCosts
from tests.tiny_models import generate, greedy, make_core, random_prompts, tiny_llama

MS = 1e-3


def request(name: str = "a") -> Request:
    return Request(name, [1, 2, 3], SamplingParams(temperature=0.0))


def prices(draft: float, row: float = 0.0) -> PassPrices:
    """A target of 10 ms, and so much more per row; a draft of so much per pass."""
    target = CostGrid(
        [1, 64], [1, 9], [[10 * MS, 10 * MS + 8 * row], [10 * MS, 10 * MS + 512 * row]]
    )
    return PassPrices(StepCosts(target, CostGrid([1, 64], [1], [[draft], [draft]])))


def gate(draft: float, row: float = 0.0, *, num_seqs: int = 1) -> MarginGate:
    opened = MarginGate()
    # One token in 10 ms is what time is worth.
    opened.open(Exchange(num_seqs / (10 * MS), prices(draft, row), num_seqs, num_seqs))
    return opened


def test_learns_how_margins_and_acceptance_hang_together() -> None:
    rng = random.Random(5)
    survival = MarginSurvival()
    for _ in range(4000):
        margin = rng.expovariate(1.0)
        chance = 1.0 / (1.0 + math.exp(1.0 - 3.0 * math.log1p(margin)))
        survival.observe([margin], int(rng.random() < chance))
    for margin in (0.1, 0.5, 1.0, 3.0):
        truth = 1.0 / (1.0 + math.exp(1.0 - 3.0 * math.log1p(margin)))
        assert survival.chance(margin) == pytest.approx(truth, abs=0.07)


def test_what_lies_behind_the_first_rejection_is_not_learnt() -> None:
    one, other = MarginSurvival(), MarginSurvival()
    one.observe([1.0, 0.2, 5.0, 5.0], 1)
    other.observe([1.0, 0.2], 1)
    assert one.chance(2.0) == other.chance(2.0)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("is_listening", [True, False])
def test_margins_are_read_for_a_gate_that_listens_alone(
    is_listening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make_core(tiny_llama(), tiny_llama(), speculation="auto")
    opened, sample, asked = MarginGate.open, core._sampler.sample, set()

    def open_so(self: MarginGate, exchange: Exchange | None, **_: bool) -> None:
        opened(self, exchange, is_listening=is_listening)

    def note(*args: Any, **keywords: Any) -> Any:
        asked.add(keywords.get("with_margins", False))
        return sample(*args, **keywords)

    monkeypatch.setattr(MarginGate, "open", open_so)
    core._sampler.sample = note  # type: ignore[method-assign]
    generate(core, random_prompts(2), [greedy(12)] * 2)
    assert core.stats().speculation.num_draft_tokens > 0
    assert asked == ({False, True} if is_listening else {False})


def test_margins_that_are_all_alike_leave_it_finite() -> None:
    survival = MarginSurvival()
    for turn in range(20_000):
        survival.observe([math.inf], turn % 2)
    assert 0.3 < survival.chance(math.inf) < 0.7
    assert 0.0 <= survival.chance(math.nan) <= 1.0


def test_a_wide_margin_goes_on_and_a_narrow_one_ends() -> None:
    assert gate(1 * MS).judge([request()], [5.0]) == [Verdict.GO_ON]
    assert gate(4 * MS).judge([request()], [0.05]) == [Verdict.END]


def test_doubts_add_up_along_a_chain() -> None:
    opened = gate(2.5 * MS)
    verdicts = [opened.judge([request()], [0.8])[0] for _ in range(6)]
    goes_on = [verdict is Verdict.GO_ON for verdict in verdicts]
    assert goes_on[0] is True
    assert goes_on[-1] is False
    assert goes_on == sorted(goes_on, reverse=True)


def test_a_pass_for_one_chain_is_not_worth_what_a_pass_for_many_is() -> None:
    alone = gate(5 * MS, num_seqs=8)
    requests = [request(f"r{index}") for index in range(8)]
    assert alone.judge(requests, [3.0] + [0.0] * 7) == [Verdict.END] * 8
    together = gate(5 * MS, num_seqs=8)
    assert together.judge(requests, [3.0] * 8) == [Verdict.GO_ON] * 8


def test_a_token_that_is_not_worth_its_row_is_dropped() -> None:
    requests = [request("sure"), request("doubtful")]
    judged = gate(0.01 * MS, 4 * MS, num_seqs=2).judge(requests, [30.0, 0.1])
    assert judged[0] is not Verdict.DROP
    assert judged[1] is Verdict.DROP


def test_some_tokens_that_are_not_worth_their_rows_are_verified_to_learn_from() -> None:
    opened = gate(0.01 * MS, 9 * MS)
    verdicts = []
    for _ in range(64):
        opened.open(Exchange(100.0, prices(0.01 * MS, 9 * MS), 1, 1))
        verdicts += opened.judge([request()], [0.1])
    assert 0 < sum(verdict is not Verdict.DROP for verdict in verdicts) <= 8


def test_a_gate_without_an_exchange_rate_lets_everything_pass() -> None:
    opened = gate(100 * MS, 100 * MS)
    opened.open(None)
    assert opened.judge([request()], [0.0]) == [Verdict.GO_ON]
    assert opened.num_drafted(request()) == 1
    assert opened.num_drafted(request("other")) == 0


def test_what_is_drafted_next_is_judged_by_what_became_of_it_before() -> None:
    opened = gate(4 * MS)
    asked = request()
    for _ in range(300):
        opened.open(Exchange(100.0, prices(4 * MS), 1, 1))
        opened.judge([asked], [2.0])
        opened.judge([asked], [2.0])
        opened.observe(asked, 2, 1)
    opened.open(Exchange(100.0, prices(4 * MS), 1, 1))
    assert opened.judge([asked], [30.0]) == [Verdict.END]


def test_drafts_that_it_never_saw_teach_it_nothing() -> None:
    opened = gate(1 * MS)
    before = opened.judge([request("seen")], [1.0])
    opened.observe(request("unseen"), 4, 0)
    opened.open(Exchange(100.0, prices(1 * MS), 1, 1))
    assert opened.judge([request("seen")], [1.0]) == before
