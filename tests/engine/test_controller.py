"""The controller: costs against chances, on made-up tables."""

from __future__ import annotations

import random

import pytest

from engine.draft_planner import DraftPlan, DraftRoom
from engine.request import NGRAM, Request
from engine.sampling_params import SamplingParams
from engine.speculative.controller import Controller
from engine.speculative.host_times import Drafting
from engine.speculative.step_costs import CostGrid, StepCosts
from engine.speculative.survival import ChainEnd, ClaimedSurvival, ModelSurvival
from engine.speculative.synthetic_acceptance import SyntheticAcceptance
from engine.step import (
    KnownDraft,
    KnownDrafts,
    ModelOutput,
    RequestOutcome,
    ScheduledRequest,
    SchedulerOutput,
)

MS = 1e-3


def flat(seconds: float) -> CostGrid:
    """A model whose pass costs the same whatever its rows: bound by memory."""
    return CostGrid([1, 64], [1, 9], [[seconds, seconds], [seconds, seconds]])


def per_row(seconds: float) -> CostGrid:
    """A model whose pass costs so much per row: bound by arithmetic."""
    return CostGrid([1, 64], [1, 9], [[seconds, 9 * seconds], [64 * seconds, 576 * seconds]])


def request(name: str = "a", *, temperature: float = 0.0) -> Request:
    return Request(name, [1, 2, 3], SamplingParams(temperature=temperature, seed=1))


def room(name: str = "a", num_tokens: int = 8, **values: float) -> DraftRoom:
    return DraftRoom(request(name, **values), num_tokens, num_tokens)


def nothing(_request: Request, _limit: int) -> list[KnownDraft]:
    return []


def known(num_tokens: int, survival: float) -> KnownDrafts:
    """Somebody who always knows the next tokens, and claims so much of each."""

    def next_tokens(_request: Request, limit: int) -> list[KnownDraft]:
        count = min(limit, num_tokens)
        claims = [survival ** (place + 1) for place in range(count)]
        return [KnownDraft(list(range(count)), NGRAM, claims)]

    return next_tokens


def experienced(controller: Controller) -> Controller:
    """A controller that has begun to ask whether drafts pay."""
    controller._probes._num_free = controller._probes._num_gated = 0
    return controller


class World:
    """Runs a controller's plans where drafts are accepted with a given chance.

    Args:
        controller: under test.
        acceptance: chance of each draft, given those before it.
        host_seconds: that a step takes beside its passes, unless nobody plans it.
    """

    def __init__(
        self, controller: Controller, acceptance: float, host_seconds: float = 0.0
    ) -> None:
        self.controller = controller
        self.acceptance = acceptance
        self.host_seconds = host_seconds
        self._rng = random.Random(3)

    def step(self, rooms: list[DraftRoom]) -> list[DraftPlan]:
        is_awake = self.controller.wakes()
        plans = self.controller.plan(rooms) if is_awake else [DraftPlan() for _ in rooms]
        shares, outcomes = [], []
        for place, plan in zip(rooms, plans, strict=True):
            shares.append(
                ScheduledRequest(place.request, 1, plan.num_tokens, 0, [1], known_draft=plan.known)
            )
            accepted = 0
            while accepted < plan.num_tokens and self._rng.random() < self.acceptance:
                accepted += 1
            outcomes.append(
                RequestOutcome(
                    [7] * (accepted + 1),
                    num_draft_tokens=plan.num_tokens,
                    num_accepted_tokens=accepted,
                )
            )
            place.request.num_computed_tokens += accepted + 1
            place.request.num_draft_computed_tokens = place.request.num_computed_tokens
        costs = self._seconds(plans)
        step = SchedulerOutput(shares), ModelOutput(outcomes)
        self.controller.observe(*step, *costs)
        has_drafts = any(plan.num_tokens for plan in plans)
        host_seconds = self.host_seconds if has_drafts or is_awake else 0.0
        self.controller.observe_host(*step, host_seconds)
        return plans

    def _seconds(self, plans: list[DraftPlan]) -> tuple[float, float]:
        """What the tables say, so that nothing is corrected."""
        costs = self.controller._prices.costs
        rows = len(plans) + sum(plan.num_tokens for plan in plans)
        longest = max(plan.num_model_tokens for plan in plans)
        passes = [sum(p.num_model_tokens > place for p in plans) for place in range(longest)]
        draft = sum(costs.draft.by_rows(n, n)[n] for n in passes) if costs.draft else 0.0
        return draft, costs.target.by_rows(len(plans), rows)[rows]

    def run(self, num_steps: int, num_requests: int = 1) -> list[list[DraftPlan]]:
        rooms = [room(f"r{index}") for index in range(num_requests)]
        return [self.step(rooms) for _ in range(num_steps)]


def lengths(steps: list[list[DraftPlan]]) -> list[int]:
    return [plan.num_tokens for plans in steps for plan in plans]


def test_a_good_cheap_draft_is_used_in_full() -> None:
    world = World(Controller(StepCosts(flat(10 * MS), flat(0.1 * MS)), nothing, 8), 0.97)
    assert lengths(world.run(200))[-1] == 8
    assert world.controller.estimated_speedup > 4.0


def test_the_length_follows_the_acceptance() -> None:
    costs = StepCosts(flat(5 * MS), flat(1 * MS))
    used = []
    for acceptance in (0.3, 0.6, 0.8, 0.95):
        planned = lengths(World(Controller(costs, nothing, 8), acceptance).run(400))[200:]
        used.append(sum(planned) / len(planned))
    assert used == sorted(used)
    assert used[0] < 1.5
    assert used[-1] > 5.0


def test_what_the_host_does_for_drafts_is_part_of_their_price() -> None:
    costs = StepCosts(flat(1 * MS), flat(0.1 * MS))
    free = World(Controller(costs, nothing, 4), 0.5)
    assert sum(lengths(free.run(400))[200:]) > 200
    dear = World(Controller(costs, nothing, 4), 0.5, host_seconds=1 * MS)
    assert sum(lengths(dear.run(400))[200:]) < 40
    assert dear.controller.draft_rests


def test_prompts_say_nothing_of_what_the_host_does() -> None:
    controller = Controller(StepCosts(flat(5 * MS), flat(1 * MS)), nothing, 8)
    share = ScheduledRequest(room().request, 2, 0, 0, [1])
    controller.observe_host(SchedulerOutput([share]), ModelOutput([RequestOutcome([])]), 1.0)
    assert controller._prices.host.of(1, Drafting.NONE) == 0.0


def test_a_useless_draft_is_given_up_and_tried_ever_more_rarely() -> None:
    world = World(Controller(StepCosts(flat(5 * MS), flat(1 * MS)), nothing, 8), 0.0)
    planned = lengths(world.run(1000))
    # A try of four steps and two drafts each after every pause; pauses double.
    assert sum(planned[100:]) <= 4 * 2 * 5
    assert sum(planned[100:]) > 0, "it is tried now and then"


@pytest.mark.parametrize(("num_steps", "num_planned"), [(80, 8), (300, 2)])
def test_a_controller_that_gave_its_draft_up_sleeps_and_lets_it_rest(
    num_steps: int, num_planned: int
) -> None:
    controller = Controller(StepCosts(flat(5 * MS), flat(1 * MS)), nothing, 8)
    World(controller, 0.0).run(num_steps)
    assert controller.draft_rests
    asleep = []
    for _ in range(32):
        asleep.append(not controller.wakes())
    assert asleep.count(False) == num_planned


def test_drafters_without_a_model_are_asked_in_every_step() -> None:
    controller = Controller(StepCosts(flat(5 * MS), None), nothing, 0)
    for _ in range(200):
        assert controller.wakes()
        controller.plan([room()])
    assert not controller.draft_rests


def test_a_pass_is_dearer_where_one_request_is_longer_than_the_others() -> None:
    uniform = CostGrid([1, 4], [1, 3], [[1.0, 1.5], [2.0, 6.0]])
    lopsided = CostGrid([1, 4], [1, 3], [[1.0, 1.5], [2.0, 4.0]])
    costs = StepCosts(uniform, None, lopsided)
    assert costs.target_pass(4, 4, 1) == pytest.approx(2.0)
    assert costs.target_pass(4, 6, 3) == pytest.approx(4.0)
    assert costs.target_pass(4, 12, 3) == pytest.approx(6.0)
    assert costs.target_pass(4, 6, 3) > costs.target_pass(4, 6, 2)
    assert StepCosts(uniform).target_pass(4, 6, 3) == StepCosts(uniform).target_pass(4, 6, 2)


def test_comes_back_when_the_draft_becomes_good() -> None:
    world = World(Controller(StepCosts(flat(5 * MS), flat(0.2 * MS)), nothing, 8), 0.0)
    world.run(60)
    world.acceptance = 0.95
    planned = lengths(world.run(400))
    assert sum(planned[-50:]) / 50 > 3.0


def test_nothing_is_drafted_where_every_row_costs_a_token() -> None:
    world = World(Controller(StepCosts(per_row(1 * MS), flat(0.5 * MS)), nothing, 8), 0.8)
    assert sum(lengths(world.run(200, num_requests=16))[50 * 16 :]) < 16 * 4 * 2 * 3


def test_a_batch_gives_its_rows_to_those_that_accept_more() -> None:
    both = CostGrid([1, 2], [1, 9], [[5 * MS, 9 * MS], [6 * MS, 14 * MS]])
    controller = experienced(Controller(StepCosts(both, flat(0.1 * MS)), nothing, 8))
    for _ in range(100):
        controller._models[True, False].observe("good", ChainEnd(4, 4, 4), 4)
        controller._models[True, False].observe("bad", ChainEnd(4, 4, 4), 0)
    good, bad = controller.plan([room("good"), room("bad")])
    assert good.num_tokens >= 2
    assert bad.num_tokens == 0


def test_known_drafts_are_cut_where_their_chances_end() -> None:
    grid = per_row(1 * MS)
    world = World(Controller(StepCosts(grid, None), known(16, 0.5), 0), 0.5)
    assert max(lengths(world.run(100))[50:]) <= 2
    sure = World(Controller(StepCosts(flat(5 * MS), None), known(16, 0.99), 0), 0.99)
    assert lengths(sure.run(100))[-1] == 8


def test_claims_are_corrected_by_what_became_of_them() -> None:
    world = World(Controller(StepCosts(per_row(1 * MS), None), known(8, 0.99), 0), 0.0)
    planned = lengths(world.run(300))
    assert sum(planned[-50:]) == 0


def test_drafts_that_nobody_verified_are_compared_with_what_was_written() -> None:
    controller = Controller(StepCosts(per_row(1 * MS), None), known(8, 0.99), 0)
    World(controller, 0.0).run(100)
    place = room()
    assert controller.plan([place])[0].num_tokens == 0
    for _ in range(400):  # now what was guessed is written each time
        place.request.token_ids.append(0)
        place.request.num_computed_tokens += 1
        controller.plan([place])
    weighed = controller._claims.best(known(1, 0.99)(place.request, 1))
    assert weighed is not None
    assert weighed.num_expected > 0.9


@pytest.mark.parametrize(("rate", "low", "high"), [(1.0, 0.9, 1.0), (0.0, 0.0, 0.1)])
def test_where_acceptance_is_synthetic_the_draws_say_what_would_have_become_of_drafts(
    rate: float, low: float, high: float
) -> None:
    hindsight = SyntheticAcceptance([rate]).hindsight
    costs = StepCosts(per_row(1 * MS), None)
    controller = Controller(costs, known(8, 0.99), 0, hindsight=hindsight)
    World(controller, 0.0).run(100)
    place = room()
    for written in (0, 55) * 200:
        place.request.token_ids.append(written)
        place.request.num_computed_tokens += 1
        controller.plan([place])
    weighed = controller._claims.best(known(1, 0.99)(place.request, 1))
    assert weighed is not None
    assert low <= weighed.num_expected <= high


def test_the_model_drafts_where_it_promises_more_than_what_is_known() -> None:
    costs = StepCosts(flat(5 * MS), flat(0.05 * MS))
    controller = Controller(costs, known(1, 0.2), 8)
    for _ in range(100):
        controller._models[True, False].observe("a", ChainEnd(8, 8, 8), 7)
    (plan,) = controller.plan([room()])
    assert plan.known is None
    assert plan.num_model_tokens > 3


def test_steps_that_take_longer_than_the_table_says_correct_it() -> None:
    controller = Controller(StepCosts(flat(5 * MS), None), nothing, 0)
    share = ScheduledRequest(request(), 1, 0, 0, [1])
    for _ in range(300):
        controller.observe(
            SchedulerOutput([share]), ModelOutput([RequestOutcome([7])]), 0.0, 10 * MS
        )
    assert controller._prices.target_pass(1, 1) == pytest.approx(10 * MS, rel=0.02)


def test_a_table_is_read_between_its_points_and_never_falls() -> None:
    grid = CostGrid([1, 4], [1, 3], [[1.0, 3.0], [4.0, 2.0]])
    assert grid.by_rows(1, 3)[:4] == [1.0, 1.0, 2.0, 3.0]
    assert grid.by_rows(1, 5)[5] == pytest.approx(5.0)
    four = grid.by_rows(4, 24)
    assert four == sorted(four)
    assert CostGrid.from_json(grid.to_json()).by_rows(2, 4) == grid.by_rows(2, 4)


def test_survival_falls_with_the_position_and_learns_by_request() -> None:
    survival = ModelSurvival(4)
    for _ in range(50):
        survival.observe("a", ChainEnd(4, 4, 4), 3)
    chances = survival.prospect_of("a", 4).accepted
    assert chances == sorted(chances, reverse=True)
    assert chances[2] > 0.6 > chances[3]
    survival.evict(["a", "unknown"])
    assert survival.prospect_of("a", 2) == survival.prospect_of("b", 2)


def test_what_is_learnt_of_all_requests_holds_for_kinds_that_are_seldom_seen() -> None:
    both = ModelSurvival(4)
    often, seldom = ModelSurvival(4, wider=both), ModelSurvival(4, wider=both)
    assert seldom.prospect(2).accepted[0] == pytest.approx(0.7)
    for _ in range(50):
        often.observe("a", ChainEnd(4, 4, 4), 0)
    assert seldom.prospect(2).accepted[0] < 0.2


def test_positions_behind_the_first_rejection_say_nothing() -> None:
    survival = ModelSurvival(4, prior=0.5)
    for _ in range(200):
        survival.observe("a", ChainEnd(4, 4, 4), 0)
    assert survival._accepted.tried[0] > 10
    assert survival._accepted.tried[1] == 0


def test_a_chain_that_was_ended_counts_as_not_accepted_behind_its_end() -> None:
    survival = ModelSurvival(4)
    for _ in range(200):
        survival.observe("a", ChainEnd(4, 2, 2), 2)
    prospect = survival.prospect(4)
    assert prospect.accepted[1] > 0.9
    assert prospect.accepted[2] < 0.1
    assert prospect.drafted[1] > 0.9
    assert prospect.drafted[2] < 0.1


def gated(draft: CostGrid, target: CostGrid) -> Controller:
    return experienced(Controller(StepCosts(target, draft), nothing, 8, has_gate=True))


def test_at_first_everybody_drafts_so_that_there_is_something_to_go_by() -> None:
    controller = Controller(StepCosts(flat(5 * MS), flat(6 * MS)), nothing, 8, has_gate=True)
    plans = controller.plan([room("a"), room("b")])
    assert [plan.num_model_tokens for plan in plans] == [4, 4]
    assert controller.gate._exchange is None


def test_a_rest_now_and_then_tells_what_drafts_are_compared_with() -> None:
    world = World(Controller(StepCosts(flat(10 * MS), flat(0.1 * MS)), nothing, 8), 0.97)
    planned = lengths(world.run(600))
    plain = [step for step, count in enumerate(planned) if count == 0]
    rests = [step for step in plain if step - 1 not in plain]
    assert len(plain) == 4 * len(rests)
    assert 5 < len(rests) < 9
    assert rests[-1] > 500


def test_a_chain_with_a_gate_is_planned_in_full_and_alike_for_all() -> None:
    controller = with_a_good_gate(gated(flat(1 * MS), flat(5 * MS)))
    plans = controller.plan([room("a"), room("b"), room("c", num_tokens=3)])
    assert [plan.num_model_tokens for plan in plans] == [8, 8, 3]


def with_a_good_gate(controller: Controller) -> Controller:
    """One whose gate drafts what is accepted, and nothing else."""
    for _ in range(100):
        controller._models[True, False].observe("a", ChainEnd(8, 6, 6), 6)
    return controller


def test_a_chain_with_a_gate_is_not_begun_where_drafts_do_not_pay() -> None:
    controller = gated(flat(6 * MS), flat(5 * MS))
    plans = controller.plan([room("a"), room("b")])
    assert [plan.num_tokens for plan in plans] == [0, 0]
    assert controller.estimated_speedup == 1.0


def test_greedy_and_sampled_requests_are_judged_apart() -> None:
    rows = CostGrid([1, 2], [1, 9], [[5 * MS, 9 * MS], [6 * MS, 14 * MS]])
    controller = gated(flat(0.5 * MS), rows)
    for _ in range(200):
        for models in (controller._models, controller._free_models):
            models[True, False].observe("a", ChainEnd(8, 8, 8), 8)
            models[False, False].observe("b", ChainEnd(8, 8, 8), 0)
    greedy, sampled = controller.plan([room("a"), room("b", temperature=1.0)])
    assert greedy.num_model_tokens == 8
    assert sampled.num_model_tokens == 0


def test_chains_of_one_length_are_planned_where_the_gate_does_worse() -> None:
    controller = gated(flat(0.1 * MS), flat(5 * MS))
    for _ in range(100):
        controller._models[True, False].observe("a", ChainEnd(8, 2, 1), 0)
        controller._free_models[True, False].observe("a", ChainEnd(8, 8, 8), 8)
    plans = controller.plan([room("a"), room("b")])
    assert [plan.num_model_tokens for plan in plans] == [8, 8]
    assert controller.gate.is_open
    assert not controller.gate.is_listening, "nobody reads margins that decide nothing"
    # What was decided for a kind of request holds on, for newcomers of it, too.
    decided = controller._num_decisions
    for _ in range(3):
        plans = controller.plan([room("a"), room("c", num_tokens=3)])
        assert [plan.num_model_tokens for plan in plans] == [8, 3]
    assert controller._num_decisions == decided
    controller.plan([room("a"), room("b")])
    assert controller._num_decisions == decided + 1


def test_a_gate_is_opened_with_what_the_step_is_worth() -> None:
    controller = with_a_good_gate(gated(flat(1 * MS), flat(5 * MS)))
    controller.plan([room("a")])
    exchange = controller.gate._exchange
    assert exchange is not None
    assert exchange.tokens_per_second == pytest.approx(controller.estimated_speedup / (5 * MS))


def test_claims_that_were_right_stay() -> None:
    claims = ClaimedSurvival()
    for _ in range(200):
        claims.observe([0.9, 0.81], 2)
    assert claims.survival([0.9, 0.81])[1] > 0.9
