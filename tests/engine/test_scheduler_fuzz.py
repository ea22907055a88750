"""Random traffic over a pool that is too small: nothing leaks, nobody starves, no word is wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engine.config import SchedulerConfig
from engine.draft_planner import DraftPlan, DraftRoom, FixedPlanner
from engine.kv_cache.manager import KVCacheManager
from engine.request import FinishReason, Request, RequestDelta
from engine.scheduler import Scheduler
from engine.step import ModelOutput, SchedulerOutput
from tests.doubles import count_speculation
from tests.engine.fake_model import BLOCK_SIZE, FakeModel, answer_of, expected_answer, make_request

NUM_BLOCKS = 17
MAX_MODEL_LEN = 48
NUM_ACTIONS = 5_000
LONGEST_WAIT_STEPS = 200


@dataclass
class FakeClock:
    now_s: float = 1.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class MoodyPlanner:
    """Gives the model up for a while and comes back, as a controller may."""

    num_draft_tokens: int
    rng: random.Random
    draft_rests: bool = False

    def wakes(self) -> bool:
        return True

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        if self.rng.random() < 0.05:
            self.draft_rests = not self.draft_rests
        is_tried = self.rng.random() < 0.1
        if self.draft_rests and not is_tried:
            return [DraftPlan()] * len(rooms)
        return [DraftPlan(None, min(self.num_draft_tokens, r.num_model_tokens)) for r in rooms]


@dataclass
class Traffic:
    """Random callers of one scheduler, and what they were told."""

    seed: int
    num_draft_tokens: int
    has_draft: bool
    draft_max_len: int | None = None
    prefix_caching: bool = True
    is_moody: bool = False
    requests: list[Request] = field(default_factory=list)
    deltas: dict[str, list[RequestDelta]] = field(default_factory=dict)
    born: dict[str, int] = field(default_factory=dict)
    num_steps: int = 0
    longest_life_steps: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = FakeClock()
        self.kv = KVCacheManager(NUM_BLOCKS, BLOCK_SIZE, self.prefix_caching)
        self.scheduler = Scheduler(
            SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=24, priority_ageing_s=10.0),
            self.kv,
            planner=(
                MoodyPlanner(self.num_draft_tokens, self.rng)
                if self.is_moody
                else FixedPlanner(None, self.num_draft_tokens)
            ),
            draft_follows=self.has_draft and self.num_draft_tokens > 0,
            max_model_len=MAX_MODEL_LEN,
            draft_max_len=self.draft_max_len,
            clock=self.clock,
        )
        self.model = FakeModel(
            BLOCK_SIZE,
            self.has_draft,
            self.draft_max_len or MAX_MODEL_LEN,
            proposes_fewer=True,
            rng=self.rng,
        )

    def act(self) -> None:
        """Do one random thing."""
        if len(self.scheduler.requests) < 12 and self.rng.random() < 0.4:
            self.add()
        elif self.rng.random() < 0.1:
            self.abort_somebody()
        else:
            self.step()

    def add(self) -> None:
        rng = self.rng
        stem = [rng.randrange(2)] * rng.randrange(0, 24)
        for choice in range(rng.choice([1, 1, 1, 3])):
            request = make_request(
                f"r{len(self.requests)}",
                stem + [rng.randrange(10, 14) for _ in range(rng.randrange(1, 12))],
                max_tokens=rng.randrange(1, 24),
                priority=rng.choice([0, 0, 0, 1, -2, 5]),
                cache_salt=rng.choice(["", "", "other"]),
                may_stop=True,
            )
            request.choice_index = choice
            self.requests.append(request)
            self.born[request.request_id] = self.num_steps
            self.scheduler.add(request)

    def abort_somebody(self) -> None:
        if self.scheduler.requests:
            assert self.scheduler.abort(self.rng.choice(list(self.scheduler.requests)))
            self.kv.check_invariants()

    def step(self) -> None:
        output = self.scheduler.schedule()
        self.kv.check_invariants()
        assert output.num_tokens <= 24
        model_output = self.model.run(output)
        self.spoil(output, model_output)
        if self.rng.random() < 0.05:
            self.abort_somebody()
        deltas = self.scheduler.update(output, model_output)
        self.kv.check_invariants()
        assert output.scheduled or deltas or not self.scheduler.requests, "no progress"
        self.num_steps += 1
        self.clock.now_s += 1.0
        for delta in deltas:
            self.hear(delta)

    def spoil(self, output: SchedulerOutput, model_output: ModelOutput) -> None:
        """Let one request's outcome be an error now and then."""
        if output.scheduled and self.rng.random() < 0.01:
            self.rng.choice(model_output.outcomes).error = "the model choked"

    def hear(self, delta: RequestDelta) -> None:
        told = self.deltas.setdefault(delta.request_id, [])
        assert not told or told[-1].finish_reason is None, "a request ended twice"
        assert delta.new_token_ids or delta.finish_reason, "a delta says nothing"
        told.append(delta)
        if delta.finish_reason is not None:
            life = self.num_steps - self.born[delta.request_id]
            self.longest_life_steps = max(self.longest_life_steps, life)

    def check_ending(self, request: Request) -> None:
        told = self.deltas[request.request_id]
        last = told[-1]
        answer = answer_of(told)
        expected = expected_answer(request, request.max_total_tokens)
        assert answer == expected[: len(answer)]
        stats = count_speculation(told)
        assert stats.num_output_tokens == len(answer)
        assert stats.num_accepted_tokens <= stats.num_output_tokens
        if last.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}:
            assert answer == expected
        elif last.finish_reason is FinishReason.ERROR:
            assert last.error


@pytest.mark.parametrize(
    "traffic",
    [
        pytest.param(Traffic(7, 0, False), id="plain"),
        pytest.param(Traffic(7, 3, False), id="drafts_without_a_model"),
        pytest.param(Traffic(7, 4, True), id="draft_model"),
        pytest.param(Traffic(7, 4, True, 20), id="short_draft_model"),
        pytest.param(Traffic(7, 2, True, prefix_caching=False), id="without_prefix_cache"),
        pytest.param(Traffic(7, 4, True, is_moody=True), id="draft_that_rests"),
        pytest.param(Traffic(8, 4, True, 20, is_moody=True), id="short_draft_that_rests"),
    ],
)
def test_random_traffic_leaks_nothing_and_starves_nobody(traffic: Traffic) -> None:
    for _ in range(NUM_ACTIONS):
        traffic.act()
    while traffic.scheduler.has_unfinished:
        traffic.step()

    for request in traffic.requests:
        traffic.check_ending(request)
    assert traffic.longest_life_steps <= LONGEST_WAIT_STEPS
    assert traffic.scheduler.num_preemptions > 50
    assert traffic.kv.num_free_blocks == NUM_BLOCKS - 1
    assert traffic.kv.usage == 0.0
    assert not traffic.scheduler.requests
