"""Measures peers in turn, A B A B: each run of one is beside a run of every other.

All workers of a dtype are loaded at once and one of them works at a time, so whatever slows the
machine slows all of them about alike, and ratios within a repeat hold. Every answer has the same
length, so that each way computes as many tokens from as many prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median

from benchmarks.peers.protocol import Load, Loaded, Run
from benchmarks.peers.ways import OURS, Way
from benchmarks.peers.worker_process import WorkerProcess
from engine.errors import EngineError

Start = Callable[[Way], WorkerProcess]
Tell = Callable[[str], None]
"""Is told what is being done."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A way whose worker has loaded."""

    way: Way
    worker: WorkerProcess
    loaded: Loaded


@dataclass(frozen=True, slots=True)
class Failure:
    """A way that could not run, and what it said."""

    dtype: str
    way: Way
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured of every lane.

    Attributes:
        prompts: token ids, taken in turn.
        concurrencies: requests in flight.
        rounds: requests in flight that follow each other, so requests over concurrency.
        max_tokens: tokens of every answer.
        temperature: of all requests.
        repeats: runs of each lane and point.
    """

    prompts: Sequence[list[int]]
    concurrencies: Sequence[int]
    rounds: int
    max_tokens: int
    temperature: float
    repeats: int

    def run_of(self, concurrency: int) -> Run:
        """Give the requests of a point, the same whenever they are asked for."""
        count = concurrency * self.rounds
        return Run(
            prompts=[list(self.prompts[n % len(self.prompts)]) for n in range(count)],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=0,
            concurrency=concurrency,
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """How answers agree with ours, greedy and without drafts.

    Attributes:
        num_equal: answers that are equal.
        num_answers: answers.
        common_share: tokens before the first that differs, over all.
    """

    num_equal: int
    num_answers: int
    common_share: float


@dataclass(slots=True)
class Measured:
    """One way at one dtype and load.

    Attributes:
        way: which.
        dtype: of weights.
        concurrency: requests in flight.
        num_tokens: tokens that a run writes.
        seconds: of each run, in the order of the repeats.
        idle_cpu: of each run, processor time that all other workers used, over its seconds.
        token_ids: what the first run wrote.
        agreement: with ours; None where answers are drawn.
    """

    way: Way
    dtype: str
    concurrency: int
    num_tokens: int
    seconds: list[float] = field(default_factory=list)
    idle_cpu: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    agreement: Agreement | None = None

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each run."""
        return [self.num_tokens / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float:
        """Their median."""
        return median(self.rates)


@contextmanager
def loaded_lanes(
    ways: Sequence[Way],
    start: Start,
    load_of: Callable[[Way], Load],
    failures: list[Failure],
    tell: Tell,
) -> Iterator[list[Lane]]:
    """Load every way's worker, one after the other; those that cannot are noted.

    Args:
        ways: in the order in which they take turns.
        start: starts a worker.
        load_of: says what it loads.
        failures: gets those that could not load.
        tell: is told who loads.
    """
    with ExitStack() as stack:
        lanes = []
        for way in ways:
            load = load_of(way)
            tell(f"{load.dtype}: {way.label} loads")
            worker = stack.enter_context(start(way))
            try:
                lanes.append(Lane(way, worker, worker.load(load)))
                worker.pause()
            except EngineError as error:
                worker.stop()
                failures.append(Failure(load.dtype, way, str(error)))
        yield lanes


def measure(
    lanes: Sequence[Lane], dtype: str, plan: Plan, failures: list[Failure], tell: Tell
) -> list[Measured]:
    """Measure every load, the lanes in turn; a lane that fails is noted and left out from there.

    Args:
        lanes: that have loaded.
        dtype: that they have loaded.
        plan: what is asked of them.
        failures: gets lanes that failed.
        tell: is told who runs.
    """
    measured: list[Measured] = []
    in_turn = list(lanes)
    for concurrency in plan.concurrencies:
        run = plan.run_of(concurrency)
        num_tokens = len(run.prompts) * run.max_tokens
        points = {lane.way: Measured(lane.way, dtype, concurrency, num_tokens) for lane in in_turn}
        for repeat in range(-1, plan.repeats):  # the first warms up
            for lane in list(in_turn):
                tell(f"{dtype}, {concurrency} at once, {max(repeat, 0) + 1}: {lane.way.label}")
                try:
                    _run_once(lane, lanes, run, points[lane.way], is_warm_up=repeat < 0)
                except EngineError as error:
                    failures.append(Failure(dtype, lane.way, str(error)))
                    in_turn.remove(lane)
                    del points[lane.way]
        if plan.temperature == 0:
            _compare_answers(list(points.values()))
        measured += points.values()
    return measured


def agreement(answers: Sequence[list[int]], own: Sequence[list[int]]) -> Agreement:
    """Compare answers with ours, request by request."""
    pairs = list(zip(answers, own, strict=True))
    common = sum(_num_common(*pair) for pair in pairs)
    return Agreement(
        num_equal=sum(a == b for a, b in pairs),
        num_answers=len(pairs),
        common_share=common / sum(len(b) for _, b in pairs),
    )


def _num_common(answer: list[int], own: list[int]) -> int:
    """Count the tokens before the first that differs."""
    return sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(answer, own, strict=False)))


def _run_once(
    lane: Lane, lanes: Sequence[Lane], run: Run, point: Measured, *, is_warm_up: bool
) -> None:
    others = [other.worker for other in lanes if other is not lane]
    before = sum(worker.cpu_seconds() for worker in others)
    lane.worker.go_on()
    answers = lane.worker.run(run)
    lane.worker.pause()
    idle = sum(worker.cpu_seconds() for worker in others) - before
    if is_warm_up:
        return
    point.seconds.append(answers.seconds)
    point.idle_cpu.append(idle / answers.seconds)
    point.token_ids = point.token_ids or answers.token_ids


def _compare_answers(points: Sequence[Measured]) -> None:
    """Compare with ours, without drafts where that was measured."""
    own = [point for point in points if point.way.peer == OURS]
    if not own:
        return
    plain = min(own, key=lambda point: point.way.speculates)
    for point in points:
        point.agreement = agreement(point.token_ids, plain.token_ids)
