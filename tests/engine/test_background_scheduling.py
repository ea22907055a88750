"""Background work takes what real-time requests leave of a step, and nothing that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engine.draft_planner import DraftPlan, DraftRoom
from engine.request import Request, RequestStatus
from engine.scheduler import Scheduler
from engine.step import ModelOutput, SchedulerOutput
from tests.engine.fake_model import (
    BLOCK_SIZE,
    FakeModel,
    expected_answer,
    make_request,
    make_scheduler,
    run_step,
    run_to_end,
)


@dataclass
class Machine:
    """Runs a scheduler's steps, which take what a made-up machine takes."""

    scheduler: Scheduler
    per_token_s: float = 0.1
    model: FakeModel = field(default_factory=lambda: FakeModel(BLOCK_SIZE))
    steps: list[dict[str, int]] = field(default_factory=list)

    def seconds(self, num_tokens: int) -> float:
        return 1.0 + self.per_token_s * num_tokens

    def step(self) -> SchedulerOutput:
        scheduler = self.scheduler
        output = scheduler.schedule()
        scheduler.kv.check_invariants()
        model_output = self.model.run(output)
        scheduler.update(output, model_output)
        scheduler.kv.check_invariants()
        self.steps.append({s.request.request_id: s.num_tokens for s in output.scheduled})
        num_tokens = sum(self.steps[-1].values())
        if num_tokens:
            scheduler.background.observe(output, model_output, self.seconds(num_tokens))
        return output

    def run(self, num_steps: int) -> list[dict[str, int]]:
        """Give what each of some more steps computed, by request."""
        for _ in range(num_steps):
            self.step()
        return self.steps[-num_steps:]


def chat(name: str = "chat", prompt: int | list[int] = 4, **values: object) -> Request:
    return make_request(name, prompt, **{"max_tokens": 150} | values)  # type: ignore[arg-type]


def batch(name: str = "batch", prompt: int | list[int] = 4, **values: object) -> Request:
    return chat(name, prompt, is_background=True, **values)


def learnt(scheduler: Scheduler, *, per_token_s: float = 0.1) -> Machine:
    """Give a machine whose step times are known."""
    machine = Machine(scheduler, per_token_s)
    scheduler.background.expect(machine.seconds)
    return machine


def test_waits_behind_everybody_else_whatever_its_age_and_priority() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    old = batch("old", arrival_time=0.001, priority=-5)
    for request in (old, batch("older", arrival_time=0.0001), chat("new", arrival_time=1e6)):
        scheduler.add(request)
    names = [share.request.request_id for share in scheduler.schedule().scheduled]
    assert names == ["new"]
    assert [r.request_id for r in scheduler._waiting] == ["old", "older"]


def test_runs_at_full_width_while_nobody_else_is_there() -> None:
    scheduler = make_scheduler(max_num_seqs=4)
    machine = learnt(scheduler, per_token_s=1.0)
    for name in "abcd":
        scheduler.add(batch(name))
    machine.step()
    assert machine.run(5) == [dict.fromkeys("abcd", 1)] * 5


@pytest.mark.parametrize(("per_token_s", "most"), [(0.0, 7), (0.03, 3), (0.2, 0)])
def test_lengthens_a_shared_step_by_no_more_than_the_share(per_token_s: float, most: int) -> None:
    scheduler = make_scheduler(max_num_seqs=8)
    machine = learnt(scheduler, per_token_s=per_token_s)
    for name in "abcdefgh":
        scheduler.add(batch(name))
    machine.run(2)
    scheduler.add(chat())
    machine.step()
    steps = machine.run(40)
    assert all(step["chat"] == 1 for step in steps)
    assert all(machine.seconds(len(step)) <= 1.1 * machine.seconds(1) for step in steps)
    assert max(len(step) - 1 for step in steps) == most


def test_pauses_in_its_order_and_goes_on_with_the_blocks_it_has() -> None:
    scheduler = make_scheduler(max_num_seqs=8)
    machine = learnt(scheduler, per_token_s=0.09)
    requests = [batch(name, arrival_time=1.0 + place) for place, name in enumerate("abc")]
    for request in requests:
        scheduler.add(request)
    machine.run(3)
    scheduler.add(chat(max_tokens=20))
    machine.run(10)
    assert {frozenset(step) for step in machine.steps[-9:]} == {frozenset({"chat", "a"})}
    assert scheduler.count_background() == (1, 2)
    while "chat" in scheduler.requests:
        machine.step()
    machine.step()
    assert set(machine.steps[-1]) == set("abc")
    assert scheduler.num_preemptions == 0


def test_a_share_of_zero_keeps_background_work_out_of_shared_steps() -> None:
    scheduler = make_scheduler(background_slowdown=0.0)
    machine = learnt(scheduler, per_token_s=0.0)
    scheduler.add(batch())
    machine.run(2)
    scheduler.add(chat(max_tokens=30))
    while "chat" in scheduler.requests:
        assert set(machine.run(1)[0]) == {"chat"}
    assert set(machine.run(1)[0]) == {"batch"}


def test_learns_step_times_where_nothing_was_measured_before() -> None:
    scheduler = make_scheduler(max_num_seqs=8, num_blocks=512)
    machine = Machine(scheduler, per_token_s=0.03)
    scheduler.add(chat())
    for name in "abcde":
        scheduler.add(batch(name, max_tokens=190))
    machine.run(90)
    steps = [set(step) for step in machine.run(32)]
    assert steps.count({"chat", *"abc"}) >= 28
    assert steps.count({"chat"}) == 2


def test_gets_a_token_now_and_then_even_where_steps_leave_no_time() -> None:
    scheduler = make_scheduler(max_model_len=400, num_blocks=256)
    machine = learnt(scheduler, per_token_s=1.0)
    scheduler.add(batch())
    machine.run(2)
    scheduler.add(chat(max_tokens=390))
    steps = machine.run(300)
    assert 1 <= sum("batch" in step for step in steps) <= 6


def test_gives_up_its_seats_to_whoever_comes() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    machine = learnt(scheduler)
    for name in "ab":
        scheduler.add(batch(name))
    machine.run(2)
    for name in ("x", "y"):
        scheduler.add(chat(name))
    machine.step()
    assert set(machine.steps[-1]) == {"x", "y"}
    assert scheduler.count_background() == (0, 2)


def test_loses_its_blocks_first_and_all_that_are_needed() -> None:
    scheduler = make_scheduler(num_blocks=13)
    machine = learnt(scheduler)
    kept, lost = batch("kept", 8, priority=-1), batch("lost", 24)
    for request in (kept, lost):
        scheduler.add(request)
    machine.run(2)
    scheduler.add(chat(prompt=20, priority=9, max_tokens=4))
    output = machine.step()
    assert output.preempted == [lost]
    assert kept.status is RequestStatus.RUNNING
    assert machine.steps[-1]["chat"] == 20


def test_several_newcomers_may_take_blocks_in_one_step() -> None:
    scheduler = make_scheduler(num_blocks=13)
    machine = learnt(scheduler)
    for name in "ab":
        scheduler.add(batch(name, 20))
    machine.run(2)
    for name in ("x", "y"):
        scheduler.add(chat(name, 20, max_tokens=2))
    machine.step()
    assert {"x", "y"} <= set(machine.steps[-1])


def test_a_guest_that_lacks_a_block_pauses_instead_of_losing_those_it_has() -> None:
    scheduler = make_scheduler(num_blocks=7)
    machine = learnt(scheduler, per_token_s=0.0)
    request = batch(prompt=8, max_tokens=9)
    scheduler.add(request)
    machine.step()
    scheduler.add(chat(prompt=15, max_tokens=2))
    machine.run(2)
    assert request.num_preemptions == 0
    assert request.num_computed_tokens >= 8


def test_its_prompts_come_in_small_parts_beside_others() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=64)
    machine = learnt(scheduler, per_token_s=0.02)
    scheduler.add(chat())
    machine.run(2)
    scheduler.add(batch(prompt=60, max_tokens=4))
    machine.step()
    steps = machine.run(8)
    assert all(1 <= step["batch"] <= 5 for step in steps)


def test_alone_it_takes_whole_prompts_unless_somebody_came_lately() -> None:
    now = [1.0]
    scheduler = make_scheduler(max_num_batched_tokens=64, clock=lambda: now[0])
    machine = learnt(scheduler)
    scheduler.add(chat(max_tokens=1))
    machine.step()
    scheduler.add(batch("small", prompt=50, max_tokens=1))
    assert machine.run(1)[0]["small"] <= 16
    scheduler.abort("small")
    now[0] += 3600.0
    scheduler.add(batch("whole", list(range(50)), max_tokens=1))
    assert machine.run(1) == [{"whole": 50}]


def test_steps_are_as_wide_as_it_pays_while_somebody_may_come() -> None:
    # Beyond 4 rows a step only gets longer: it does no more per second.
    scheduler = make_scheduler(max_num_seqs=8)
    scheduler.background.expect(lambda count: float(max(count, 4)))
    model = FakeModel(BLOCK_SIZE)
    scheduler.add(chat(max_tokens=1))
    run_step(scheduler, model)
    for name in "abcdefgh":
        scheduler.add(batch(name, [1, 2], max_tokens=20))
    for _ in range(8):
        run_step(scheduler, model)
    assert len(scheduler.schedule().scheduled) == 4


@dataclass
class FlatMachine(Machine):
    """One that does no more per second beyond 8 tokens."""

    def seconds(self, num_tokens: int) -> float:
        return self.per_token_s * max(num_tokens, 8)


def test_sizes_that_were_never_seen_are_tried_rarely_while_somebody_may_come() -> None:
    # Answers are so short that larger steps always hold a prompt, which says nothing of decoding.
    machine = FlatMachine(make_scheduler(max_num_seqs=64, num_blocks=1200))
    scheduler = machine.scheduler
    scheduler.add(chat(max_tokens=1))
    machine.run(1)
    number, sizes = 0, []
    for _ in range(500):
        while scheduler.background.num_requests < 80:
            scheduler.add(batch(f"b{number}", [1, 2], max_tokens=12 + number % 7))
            number += 1
        sizes.append(len(machine.step().scheduled))
    assert max(sizes[:100]) >= 8, "small ones are tried at once"
    assert 0 < sum(size > 10 for size in sizes) <= len(sizes) // 50


def test_nobody_waits_for_a_prefix_that_background_work_computes() -> None:
    prompt = list(range(40))
    scheduler = make_scheduler(max_num_batched_tokens=16)
    scheduler.add(batch("first", prompt))
    run_step(scheduler, FakeModel(BLOCK_SIZE))
    scheduler.add(chat(prompt=prompt))
    scheduler.add(batch("second", prompt))
    step = scheduler.schedule()
    assert "chat" in {share.request.request_id for share in step.scheduled}
    assert scheduler.kv.is_prefix_pending(scheduler.requests["second"])


@dataclass
class Watching:
    """Gives everybody two drafts, and keeps whom it was asked for."""

    draft_rests: bool = False
    asked: list[list[str]] = field(default_factory=list)

    def wakes(self) -> bool:
        return True

    def plans_ahead(self, requests: Sequence[Request]) -> bool:
        return True

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        self.asked.append([room.request.request_id for room in rooms])
        return [DraftPlan(None, min(2, room.num_model_tokens)) for room in rooms]


def test_drafts_alone_and_takes_no_drafts_from_others() -> None:
    planner = Watching()
    scheduler = make_scheduler(planner=planner)
    machine = learnt(scheduler, per_token_s=0.0)
    scheduler.add(batch())
    machine.run(2)
    assert planner.asked[-1] == ["batch"]
    scheduler.add(chat(max_tokens=60))
    machine.step()
    machine.run(3)
    assert planner.asked[-1] == ["chat"]
    assert set(machine.steps[-1]) == {"chat", "batch"}


def test_its_prompts_do_not_keep_others_from_drafting() -> None:
    planner = Watching()
    scheduler = make_scheduler(planner=planner, max_num_batched_tokens=8)
    machine = learnt(scheduler)
    scheduler.add(chat(max_tokens=60))
    machine.run(2)
    scheduler.add(batch(prompt=60))
    output = machine.step()
    assert output.scheduled[0].num_draft_tokens == 2


def test_a_step_that_does_not_fit_into_memory_costs_background_work_its_blocks() -> None:
    scheduler = make_scheduler()
    scheduler.background.expect(lambda _count: 1.0)
    model, request = FakeModel(BLOCK_SIZE), batch(prompt=4)
    scheduler.add(chat(prompt=20, max_tokens=4))
    scheduler.add(request)
    for _ in range(3):
        run_step(scheduler, model)
    scheduler.background.expect(lambda _count: 1.0)
    assert len(scheduler.schedule().scheduled) == 2
    scheduler.shed("no memory", was_ahead=False)
    assert request.status is RequestStatus.WAITING
    assert scheduler.requests["chat"].num_preemptions == 0


def test_says_the_same_whatever_comes_between() -> None:
    scheduler = make_scheduler(num_blocks=17, max_num_seqs=3)
    machine = learnt(scheduler, per_token_s=0.04)
    requests = [batch(name, 10, max_tokens=16) for name in "abc"]
    limits = {r.request_id: r.max_total_tokens for r in requests}
    for request in requests:
        scheduler.add(request)
    for number in range(6):
        machine.run(3)
        scheduler.add(chat(f"chat {number}", 16, max_tokens=5))
    run_to_end(scheduler, machine.model)
    for request in requests:
        answer = request.token_ids[request.num_prompt_tokens :]
        assert answer == expected_answer(request, limits[request.request_id])
    assert sum(request.num_preemptions for request in requests) > 0


def test_counts_are_those_of_an_empty_engine_in_the_end() -> None:
    scheduler = make_scheduler()
    for request in (chat(max_tokens=3), batch(max_tokens=3)):
        scheduler.add(request)
    scheduler.abort("batch")
    run_to_end(scheduler, FakeModel(BLOCK_SIZE))
    assert scheduler.count_background() == (0, 0)
    assert scheduler.background.num_requests == 0
    assert scheduler.schedule().scheduled == []
    assert scheduler.update(SchedulerOutput(), ModelOutput([])) == []
