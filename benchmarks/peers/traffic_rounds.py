"""Open load on two servers in turn: what they can do at most, then shares of it, in rounds.

All of it is a share of one rate: the lower of both capacities. So a queue that only grows is
neither's fate, and latencies are those of the load, not of how long it was kept up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.two_servers import Lane, asked, in_turn
from benchmarks.rounds import Numbers, Spread, over_rounds
from benchmarks.serving.arrivals import poisson_arrivals, stretched
from benchmarks.serving.points import Load, Point, Runner, counting
from benchmarks.serving.prompt_sets import PromptSet
from benchmarks.serving.statistics import Terms
from engine.errors import EngineError

COMPARED = ("ttft_ms_p50", "ttft_ms_p99", "itl_per_event_ms_p99", "tpot_ms_p50", "tokens_per_s")
_CAPACITY_ROUNDS = 2
_PER_STREAM = 4
_AT_LEAST = 16

OnShare = Callable[[str, float], None]
"""Is told what is measured, and the share of it that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Requests of one kind.

    Attributes:
        name: in tables.
        prompts: what is asked.
        shares: of capacity, at which it is asked.
        arrivals_s: as a trace has them, to be stretched; empty = Poisson arrivals.
        seconds: of Poisson arrivals.
    """

    name: str
    prompts: PromptSet
    shares: Sequence[float]
    arrivals_s: Sequence[float] = ()
    seconds: float = 0.0

    def load(self, share: float, capacity: float, seed: int) -> Load:
        """Give a load.

        Args:
            share: of the capacity.
            capacity: requests per second.
            seed: of Poisson arrivals.
        """
        rate = share * capacity
        arrivals = self.arrivals_s
        if not arrivals:
            count = max(_AT_LEAST, round(rate * self.seconds))
            arrivals = poisson_arrivals(rate, count, seed)
        label = f"{self.name} at {share:.0%}"
        return Load(label, 100 * share, len(arrivals), arrivals_s=stretched(arrivals, rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        works: kinds of requests, each with capacities of its own.
        streams: of the closed loop that finds capacity.
        max_tokens: of answers whose prompt says nothing else.
        repeats: rounds.
        seed: of arrivals and sampling.
    """

    works: Sequence[Work]
    streams: int
    max_tokens: int
    repeats: int
    seed: int

    @property
    def num_steps(self) -> int:
        """Turns of each lane."""
        loads = sum(len(work.shares) for work in self.works)
        return loads * self.repeats + _CAPACITY_ROUNDS * len(self.works)


@dataclass(slots=True)
class Pair:
    """What was measured of both servers at one load.

    Attributes:
        load: it.
        is_poisson: whether its arrivals are random.
        points: by the lane's label, ours first; rounds were measured in turn.
    """

    load: Load
    is_poisson: bool
    points: dict[str, Point] = field(default_factory=dict)

    @property
    def ratios(self) -> Spread:
        """Ours over the peer's, round by round."""
        own, other = self.points.values()
        return over_rounds([ratios(*both) for both in zip(own.rounds, other.rounds, strict=True)])


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found.

    Attributes:
        capacities: requests per second at saturation, by work and lane.
        pairs: one for each load.
    """

    capacities: dict[str, dict[str, float]]
    pairs: list[Pair]


def ratios(own: Numbers, other: Numbers, names: Sequence[str] = COMPARED) -> Numbers:
    """Give ours over the peer's; None where one is missing, or the peer's is 0."""
    found: Numbers = {}
    for name in names:
        a, b = own.get(name), other.get(name)
        found[name] = None if a is None or not b else a / b
    return found


async def measure(lanes: Sequence[Lane], plan: Plan, on_share: OnShare) -> Measured:
    """Measure all works: first capacity, then every load in each round.

    Args:
        lanes: ours first.
        plan: what is measured.
        on_share: is told how far each turn of a lane is; a share of 1.0 ends it.

    Raises:
        EngineError: a server ended, or answered nothing.
    """
    runners = {work.name: _runners(lanes, work, plan) for work in plan.works}
    capacities = {
        work.name: await _capacities(lanes, runners[work.name], plan, work, on_share)
        for work in plan.works
    }
    pairs, runner_of = [], {}
    for work in plan.works:
        lower = min(capacities[work.name].values())
        for share in work.shares:
            load = work.load(share, lower, plan.seed)
            points = {lane.label: Point(load) for lane in lanes}
            pairs.append(Pair(load, not work.arrivals_s, points))
            runner_of[load.label] = runners[work.name]
    for number in range(plan.repeats):
        for pair in pairs:
            for lane in in_turn(lanes, number):
                runner, salt = runner_of[pair.load.label][lane.label], f"round-{number}"
                await _run_once(lane, lanes, runner, pair.points[lane.label], salt, on_share)
    return Measured(capacities, pairs)


def _runners(lanes: Sequence[Lane], work: Work, plan: Plan) -> dict[str, Runner]:
    """Give who asks for each lane: the same texts, fitted to lengths at ours where they are."""
    asks, wanted = work.prompts.asks, work.prompts.prompt_tokens
    if wanted:
        fit = lanes[0].door.fit
        asks = [fit(ask, count) for ask, count in zip(asks, wanted, strict=True)]
    return {
        lane.label: Runner(
            door=lane.door, asks=asks, max_tokens=plan.max_tokens, seed=plan.seed, terms=Terms()
        )
        for lane in lanes
    }


async def _capacities(
    lanes: Sequence[Lane],
    runners: dict[str, Runner],
    plan: Plan,
    work: Work,
    on_share: OnShare,
) -> dict[str, float]:
    """Give each lane's requests per second while all streams are busy, in its better round."""
    count = len(work.arrivals_s) or _PER_STREAM * plan.streams
    load = Load(f"{work.name}, capacity", 0.0, count, concurrency=min(plan.streams, count))
    points = {lane.label: Point(load) for lane in lanes}
    for number in range(_CAPACITY_ROUNDS):
        for lane in in_turn(lanes, number):
            runner, salt = runners[lane.label], f"capacity-{number}"
            await _run_once(lane, lanes, runner, points[lane.label], salt, on_share)
    return {label: max(map(_requests_per_s, point.rounds)) for label, point in points.items()}


def _requests_per_s(numbers: Numbers) -> float:
    tokens, length = numbers["steady_tokens_per_s"], numbers["output_tokens_mean"]
    # Where tokens are not told, or streams were never all busy: filling and emptying included.
    rate = tokens / length if tokens and length else numbers["requests_per_s"]
    if not rate:
        raise EngineError("a server answered no request of the run that finds its capacity.")
    return rate


async def _run_once(
    lane: Lane,
    lanes: Sequence[Lane],
    runner: Runner,
    point: Point,
    salt: str,
    on_share: OnShare,
) -> None:
    told = f"{point.load.label}: {lane.label}"
    on_done = counting(point.load.num_requests, lambda share: on_share(told, min(share, 0.99)))
    on_share(told, 0.0)
    with asked(lane, lanes) as used:
        records, numbers = await runner.run_round(point.load, f"{point.load.label}-{salt}", on_done)
    point.add(records, numbers | used)
    on_share(told, 1.0)


def clipped(lengths: Sequence[tuple[int, int]], context: int) -> tuple[list[tuple[int, int]], int]:
    """Clip tokens of prompts and answers to a model's context; gives how many were clipped, too.

    Args:
        lengths: of each prompt and its answer.
        context: tokens of both at most; an answer gets a quarter of it, and a prompt the rest.
    """
    answer = context // 4
    # Made-up texts meet their lengths only nearly.
    prompt = context - answer - max(1, context // 32)
    kept = [(min(a, prompt), min(b, answer)) for a, b in lengths]
    return kept, sum(before != after for before, after in zip(lengths, kept, strict=True))
