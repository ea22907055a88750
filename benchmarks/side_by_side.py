"""Runs several engines over the same requests, a step of each in turn.

Machines drift by tens of percent within seconds. Here the engine that is furthest behind always
makes the next step, so whatever slows the machine slows all of them alike, and ratios of their
times hold within a few percent. The engines share their models; each has a KV cache of its own.
The load is closed: a request that ends is followed by the next, so there is no emptying tail.
"""

from __future__ import annotations

import itertools
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.door import make_requests
from engine.model_pair import ModelPair
from engine.request import Request, RequestDelta, SpeculationStats
from engine.sampling_params import SamplingParams

MakeRequest = Callable[[EngineCore, int], Request]
"""Makes the request of a number, the same in every engine."""


class StepNote(NamedTuple):
    """What a step drafted.

    Attributes:
        num_requests: requests that got tokens.
        drafts: draft tokens that were verified, by who made them.
        estimated_speedup: what a controller expected of the last plan that it weighed; else 1.
        draft_seconds: time spent proposing, the draft's part of prompts included.
    """

    num_requests: int
    drafts: dict[str, int]
    estimated_speedup: float
    draft_seconds: float


@dataclass(slots=True)
class Lane:
    """One engine under load, and what it did so far.

    Attributes:
        name: as told in tables.
        core: the engine.
        concurrency: requests in flight at all times.
        num_tokens: tokens that were emitted.
        seconds: time that its steps took.
        marks: `num_tokens` and `seconds` behind each step.
        num_steps: steps.
        draft_seconds: of `seconds`, spent proposing.
        target_seconds: of `seconds`, spent in the target.
        controller_seconds: of `seconds`, spent on deciding who drafts how much.
        speculation: what was drafted and accepted.
        notes: what each step drafted.
        answers: tokens by request number.
        num_passes: target passes that gave them, by request number.
    """

    name: str
    core: EngineCore
    concurrency: int
    num_tokens: int = 0
    seconds: float = 0.0
    marks: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)])
    num_steps: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    controller_seconds: float = 0.0
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    notes: list[StepNote] = field(default_factory=list)
    answers: dict[int, list[int]] = field(default_factory=dict)
    num_passes: dict[int, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _in_flight: dict[str, int] = field(default_factory=dict)

    def step(self, make_request: MakeRequest) -> None:
        """Keep the engine busy and make one step of it."""
        while len(self._in_flight) < self.concurrency:
            number = next(self._numbers)
            request = make_request(self.core, number)
            self._in_flight[request.request_id] = number
            self.core.add_request(request)
        before = self.core.stats()
        drafting, verifying = before.draft_seconds, before.target_seconds
        deciding = before.controller_seconds
        started = time.perf_counter()
        deltas = self.core.step()
        self.seconds += time.perf_counter() - started
        after = self.core.stats()
        drafting = after.draft_seconds - drafting
        self.draft_seconds += drafting
        self.target_seconds += after.target_seconds - verifying
        self.controller_seconds += after.controller_seconds - deciding
        self.num_steps += 1
        for delta in deltas:
            self._take(delta)
        self.marks.append((self.num_tokens, self.seconds))
        self.notes.append(_note(deltas, after.estimated_speedup, drafting))

    def count_anew(self) -> None:
        """Count from here on; requests in flight go on."""
        self.num_tokens, self.seconds, self.num_steps = 0, 0.0, 0
        self.draft_seconds = self.target_seconds = self.controller_seconds = 0.0
        self.marks = [(0, 0.0)]
        self.speculation = SpeculationStats()
        self.notes = []

    def finish(self, next_number: int | None = None) -> None:
        """Drop what is in flight.

        Args:
            next_number: of the request that comes next, if any does; None = the one in turn.
        """
        self.core.abort(list(self._in_flight))
        self._in_flight.clear()
        self.core.step()
        if next_number is not None:
            self._numbers = itertools.count(next_number)

    def is_done_with(self, number: int) -> bool:
        """Whether a request and all before it have ended, where numbers began at 0."""
        return number in self.answers and min(self._in_flight.values(), default=number + 1) > number

    def seconds_at(self, num_tokens: int) -> float:
        """Give the time at which so many tokens had been emitted."""
        place = bisect_left(self.marks, (num_tokens, 0.0))
        if place == 0:
            return 0.0
        (low, before), (high, after) = self.marks[place - 1], self.marks[place]
        return before + (after - before) * (num_tokens - low) / (high - low)

    def _take(self, delta: RequestDelta) -> None:
        number = self._in_flight[delta.request_id]
        self.answers.setdefault(number, []).extend(delta.new_token_ids)
        self.num_tokens += len(delta.new_token_ids)
        if delta.new_token_ids:
            self.num_passes[number] = self.num_passes.get(number, 0) + 1
        delta.observe(self.speculation, len(delta.new_token_ids))
        if delta.finish_reason is not None:
            del self._in_flight[delta.request_id]


def make_lane(
    name: str, config: EngineConfig, models: ModelPair, draft: str | None, k: int | None,
    concurrency: int,
) -> Lane:  # fmt: skip
    """Make an engine over models that are shared.

    Args:
        name: of the lane.
        config: settings of all engines.
        models: the target, and the draft if the lane has one.
        draft: as `--draft` says it.
        k: as `--speculation` says it; None = auto.
        concurrency: requests in flight.
    """
    speculation = replace(config.speculation, draft=draft, max_draft_tokens=k)
    scheduler = replace(config.scheduler, max_num_seqs=concurrency)
    own = replace(config, speculation=speculation, scheduler=scheduler)
    if k == 0:
        models = ModelPair(models.target, load_tokenizer=models.load_tokenizer)
    return Lane(name, EngineCore(own, models), concurrency)


def endless_chat(
    prompts: Sequence[Sequence[int]], temperature: float, max_tokens: int, *, repeats: bool = False
) -> MakeRequest:
    """Give requests without end, prompts in turn, answers of half to one and a half `max_tokens`.

    Answers differ in length, so that they do not all end and begin in the same steps.

    Args:
        prompts: token ids.
        temperature: of all requests.
        max_tokens: tokens of an answer on average.
        repeats: whether a prompt that comes back has the same seed and length, thus answer.
    """

    def make(core: EngineCore, number: int) -> Request:
        place = number % len(prompts)
        seed = place if repeats else number
        params = SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=random.Random(seed).randint(max_tokens // 2, max_tokens * 3 // 2),
            ignore_eos=True,
        )
        prompt = list(prompts[place])
        return make_requests(prompt, params, request_id=f"request-{number}", info=core.info)[0]

    return make


def run_side_by_side(
    lanes: Sequence[Lane],
    make_request: MakeRequest,
    *,
    num_tokens: int,
    num_warm_up_tokens: int,
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Step the lanes in turn until each has emitted `num_tokens` behind the warm-up."""
    for lane in lanes:
        while lane.num_tokens < num_warm_up_tokens:
            lane.step(make_request)
        lane.count_anew()
    take_turns(
        lanes,
        make_request,
        lambda: _fewest_tokens(lanes) >= num_tokens,
        lambda: on_progress(_fewest_tokens(lanes) / num_tokens),
    )
    for lane in lanes:
        lane.finish()


def run_for_steps(
    lanes: Sequence[Lane],
    lead: Lane,
    num_steps: int,
    make_request: MakeRequest,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Step the lanes in turn until one has made so many steps and none has fewer tokens."""
    end = lead.num_steps + num_steps

    def is_done() -> bool:
        return lead.num_steps >= end and _fewest_tokens(lanes) >= lead.num_tokens

    take_turns(lanes, make_request, is_done, on_step)


def take_turns(
    lanes: Sequence[Lane],
    make_request: MakeRequest,
    is_done: Callable[[], bool],
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Let the lane that is furthest behind make the next step, until all is done."""
    while not is_done():
        min(lanes, key=lambda lane: lane.num_tokens).step(make_request)
        on_step()


def _fewest_tokens(lanes: Sequence[Lane]) -> int:
    return min(lane.num_tokens for lane in lanes)


def _note(
    deltas: Sequence[RequestDelta], estimated_speedup: float, draft_seconds: float
) -> StepNote:
    drafts: dict[str, int] = {}
    for delta in deltas:
        if delta.drafter is not None:
            drafts[delta.drafter] = drafts.get(delta.drafter, 0) + delta.num_draft_tokens
    num_requests = sum(bool(delta.new_token_ids) for delta in deltas)
    return StepNote(num_requests, drafts, estimated_speedup, draft_seconds)


def speed_ups(lane: Lane, baseline: Lane, *, num_parts: int) -> list[float]:
    """Give how much faster than `baseline` a lane emitted each part of the tokens."""
    num_tokens = min(lane.num_tokens, baseline.num_tokens)
    places = [num_tokens * part // num_parts for part in range(num_parts + 1)]
    times = [(lane.seconds_at(place), baseline.seconds_at(place)) for place in places]
    return [(b1 - b0) / (a1 - a0) for (a0, b0), (a1, b1) in itertools.pairwise(times)]


def num_equal_answers(lane: Lane, baseline: Lane) -> tuple[int, int]:
    """Count answers that agree as far as both go, and all that both began."""
    common = lane.answers.keys() & baseline.answers.keys()
    pairs = [(lane.answers[number], baseline.answers[number]) for number in common]
    same = sum(a[: len(b)] == b[: len(a)] for a, b in pairs)
    return same, len(pairs)
