"""Measures drafters over load: every number of drafts beside plain decoding, point by point.

A point is a workload, a temperature, a drafter and a concurrency. At each, `off`, every static
number of drafts and `auto` are engines over the same models and requests, stepped in turn
(`benchmarks/side_by_side.py`), so ratios inside a point hold, whatever the machine does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.drafters import LoadedDrafter
from benchmarks.lanes import free_memory, lane_for, lane_name
from benchmarks.progress import OnProgress
from benchmarks.report import rounded
from benchmarks.side_by_side import (
    Lane,
    endless_chat,
    num_equal_answers,
    run_side_by_side,
    speed_ups,
)
from benchmarks.workloads import Workload
from engine.errors import ConfigError, ContextLengthExceededError

_MIN_TOKENS = 512
_MIN_WARM_UP_TOKENS = 128
_ANSWERS_PER_REQUEST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is measured at each point, and at which points.

    Attributes:
        draft_tokens: static numbers of drafts, beside `off` and `auto`.
        concurrencies: requests in flight.
        temperatures: of all requests.
        max_tokens: tokens of an answer on average; answers have half to one and a half of it.
        num_tokens: tokens measured per lane; None = two answers for each request in flight, at
            least 512.
        num_warm_up_tokens: tokens before that; None = one answer for each, at least 128.
        num_parts: parts of the measured tokens; their range is the spread.

    Raises:
        ConfigError: a value that cannot be measured.
    """

    draft_tokens: tuple[int, ...] = (1, 2, 4, 8)
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    temperatures: tuple[float, ...] = (0.0, 1.0)
    max_tokens: int = 64
    num_tokens: int | None = None
    num_warm_up_tokens: int | None = None
    num_parts: int = 5

    def __post_init__(self) -> None:
        for name, values, low in (
            ("draft-tokens", self.draft_tokens, 1),
            ("concurrency", self.concurrencies, 1),
            ("temperatures", self.temperatures, 0),
            ("max-tokens", [self.max_tokens], 2),
            ("parts", [self.num_parts], 1),
            ("tokens", [self.tokens_at(1)], self.num_parts),
            ("warm-up-tokens", [self.warm_up_tokens_at(1)], 0),
        ):
            _check_values(name, values, low)

    def tokens_at(self, concurrency: int) -> int:
        """Give the tokens measured per lane."""
        if self.num_tokens is not None:
            return self.num_tokens
        return max(_MIN_TOKENS, _ANSWERS_PER_REQUEST * concurrency * self.max_tokens)

    def warm_up_tokens_at(self, concurrency: int) -> int:
        """Give the tokens of a lane that are not measured."""
        if self.num_warm_up_tokens is not None:
            return self.num_warm_up_tokens
        return max(_MIN_WARM_UP_TOKENS, concurrency * self.max_tokens)

    @property
    def longest_answer(self) -> int:
        """Tokens of an answer at most."""
        return self.max_tokens * 3 // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one lane did at one point.

    Attributes:
        workload: which prompts.
        temperature: of all requests.
        drafter: who drafts in the point's lanes.
        concurrency: requests in flight.
        draft_tokens: static number of drafts; 0 = off, None = auto.
        num_tokens: tokens measured.
        seconds: that they took.
        tokens_per_second: over the parts.
        speed_up: over `off`, all parts together.
        speed_up_spread: the lowest and the highest of the parts.
        tokens_per_target_pass: tau, the target's own token included.
        acceptance_rate: of the drafts that were verified.
        drafted_per_position: drafts verified at each place of a draft.
        accepted_per_position: of these, accepted.
        draft_share: of the time, spent proposing.
        target_share: of the time, spent in the target.
        num_equal_answers: answers that are those of `off`, as far as both go.
        num_compared_answers: answers that both began.
    """

    workload: str
    temperature: float
    drafter: str
    concurrency: int
    draft_tokens: int | None
    num_tokens: int
    seconds: float
    tokens_per_second: list[float]
    speed_up: float
    speed_up_spread: tuple[float, float]
    tokens_per_target_pass: float
    acceptance_rate: float
    drafted_per_position: list[int]
    accepted_per_position: list[int]
    draft_share: float
    target_share: float
    num_equal_answers: int
    num_compared_answers: int

    @property
    def lane(self) -> str:
        """The lane's name."""
        return lane_name(self.draft_tokens)

    @property
    def efficiency(self) -> float:
        """S/tau: 1 means that drafting and verifying cost nothing."""
        return self.speed_up / self.tokens_per_target_pass if self.tokens_per_target_pass else 0.0

    def to_json(self) -> dict[str, Any]:
        """Give what is written down, rounded to what it is worth."""
        row = {name: rounded(value) for name, value in asdict(self).items()}
        return {"lane": self.lane, **row, "efficiency": rounded(self.efficiency)}


def num_points(sweep: Sweep, num_drafters: int, num_workloads: int) -> int:
    """Count the points of a sweep."""
    load = len(sweep.concurrencies) * len(sweep.temperatures)
    return load * num_drafters * num_workloads


def check_fit(sweep: Sweep, workloads: Sequence[Workload], limit: int) -> None:
    """Refuse prompts that leave no room for their answers, before anything is measured.

    Raises:
        ContextLengthExceededError: prompt and answer exceed the `limit` tokens of the model.
    """
    for workload in workloads:
        if workload.longest_prompt + sweep.longest_answer > limit:
            raise ContextLengthExceededError(
                f"{workload.name}: a prompt of {workload.longest_prompt} tokens and an answer of "
                f"{sweep.longest_answer} exceed the model's {limit}; shorten the prompt or lower "
                "--max-tokens."
            )


def run_sweep(
    sweep: Sweep,
    drafters: Sequence[LoadedDrafter],
    workloads: Sequence[Workload],
    on_progress: OnProgress = lambda point, done: None,
) -> Iterator[list[Measurement]]:
    """Measure point by point, and give each point's lanes, `off` first."""
    points = itertools.product(workloads, sweep.temperatures, drafters, sweep.concurrencies)
    for index, (workload, temperature, drafter, concurrency) in enumerate(points):
        point = _Point(sweep, drafter, workload, temperature, concurrency)
        on_progress(point.name, index)
        yield point.measure(partial(_tell, on_progress, point.name, index))
        free_memory()


@dataclass(frozen=True, slots=True)
class _Point:
    sweep: Sweep
    loaded: LoadedDrafter
    workload: Workload
    temperature: float
    concurrency: int

    @property
    def name(self) -> str:
        where = f"{self.workload.name}, T={self.temperature:g}, {self.loaded.drafter.name}"
        return f"{where}, {self.concurrency} at once"

    def measure(self, on_progress: Callable[[float], None]) -> list[Measurement]:
        """Run the lanes of the point in turn."""
        static = () if self.loaded.is_nobody else self.sweep.draft_tokens
        counts: list[int | None] = [0, *static, None]
        longest = self.workload.longest_prompt + self.sweep.longest_answer
        lanes = [
            lane_for(self.loaded, count, concurrency=self.concurrency, longest=longest)
            for count in counts
        ]
        run_side_by_side(
            lanes,
            endless_chat(self.workload.prompts, self.temperature, self.sweep.max_tokens),
            num_tokens=self.sweep.tokens_at(self.concurrency),
            num_warm_up_tokens=self.sweep.warm_up_tokens_at(self.concurrency),
            on_progress=on_progress,
        )
        return [self._read(lane, lanes[0], k) for lane, k in zip(lanes, counts, strict=True)]

    def _read(self, lane: Lane, off: Lane, draft_tokens: int | None) -> Measurement:
        num_parts, stats = self.sweep.num_parts, lane.speculation
        ratios = speed_ups(lane, off, num_parts=num_parts)
        num_equal, num_compared = num_equal_answers(lane, off)
        return Measurement(
            workload=self.workload.name,
            temperature=self.temperature,
            drafter=self.loaded.drafter.name,
            concurrency=self.concurrency,
            draft_tokens=draft_tokens,
            num_tokens=lane.num_tokens,
            seconds=lane.seconds,
            tokens_per_second=_rates(lane, num_parts),
            speed_up=speed_ups(lane, off, num_parts=1)[0],
            speed_up_spread=(min(ratios), max(ratios)),
            tokens_per_target_pass=stats.tokens_per_target_pass,
            acceptance_rate=stats.acceptance_rate,
            drafted_per_position=stats.num_draft_tokens_per_pos,
            accepted_per_position=stats.num_accepted_tokens_per_pos,
            draft_share=lane.draft_seconds / lane.seconds,
            target_share=lane.target_seconds / lane.seconds,
            num_equal_answers=num_equal,
            num_compared_answers=num_compared,
        )


def _rates(lane: Lane, num_parts: int) -> list[float]:
    places = [lane.num_tokens * part // num_parts for part in range(num_parts + 1)]
    return [
        (high - low) / (lane.seconds_at(high) - lane.seconds_at(low))
        for low, high in itertools.pairwise(places)
    ]


def _tell(on_progress: OnProgress, point: str, num_done: int, share: float) -> None:
    on_progress(point, num_done + share)


def _check_values(name: str, values: Sequence[float], low: float) -> None:
    if not values and name != "draft-tokens":
        raise ConfigError(f"{name}: give at least one number.")
    for value in values:
        if value < low:
            raise ConfigError(f"{name}: {value:g} is below {low:g}.")
    if len(set(values)) < len(values):
        raise ConfigError(f"{name}: a number stands twice.")
