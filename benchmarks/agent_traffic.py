"""What suffix decoding gives on repeated traffic: the same tasks, round after round.

Two kinds of it: `edited`, where each round changes a time, a number or a name or adds a sentence,
and `same`, where requests come again as they were. Whether answers repeat too is the model's
affair, so it is counted: how many are equal or nearly equal to an earlier one of their task, and
the tokens per pass of those that are. Round 1 has nothing to go by but itself.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.agent_tasks import edited
from benchmarks.drafters import Drafter, LoadedDrafter
from benchmarks.lanes import free_memory, lane_for
from benchmarks.program import run_program, write_output
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded, settings_of
from benchmarks.side_by_side import Lane, MakeRequest, take_turns
from benchmarks.sweep_flags import numbers
from benchmarks.workbench import Workbench, add_workbench_flags, check_at_least, load_workbench
from benchmarks.workloads import distinct_openings, render_openings
from engine.core import EngineCore
from engine.door import make_requests
from engine.errors import ConfigError
from engine.request import Request
from engine.sampling_params import SamplingParams

BAR = 4.0
KINDS = ("edited", "same")
NEARLY = 0.9
"""Of both answers' tokens, in common and in order: from here on they are nearly equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What one lane did in one round of all tasks, or in several.

    Attributes:
        kind: of traffic.
        concurrency: requests in flight.
        lane: `off`, a static number of drafts, or `auto`.
        name: the round, from 1; `2 on` are all behind the first.
        tokens_per_pass: tau, of all answers.
        speed_up: over `off`; with several requests at once rounds run into each other a little.
        num_answers: answers.
        num_equal: of these, equal to an earlier one of their task.
        num_nearly: equal or nearly so.
        tokens_per_pass_nearly: tau of the latter; None = there are none.
    """

    kind: str
    concurrency: int
    lane: str
    name: str
    tokens_per_pass: float
    speed_up: float
    num_answers: int
    num_equal: int
    num_nearly: int
    tokens_per_pass_nearly: float | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    add_workbench_flags(parser, "agent_traffic", max_tokens=120)
    parser.add_argument("--drafter", default="suffix", help="who drafts (default: suffix)")
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        metavar="KIND,KIND",
        help=f"of {', '.join(KINDS)} (default: all)",
    )
    parser.add_argument("--concurrency", default="1,8", metavar="N,N", help="default: 1,8")
    parser.add_argument(
        "--draft-tokens", type=int, default=16, help="of the static lane (default: 16)"
    )
    parser.add_argument("--tasks", type=int, default=16, help="default: 16")
    parser.add_argument("--rounds", type=int, default=6, help="default: 6")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: the model cannot be loaded.
    """
    points, console = _points(args), Console()
    bench = load_workbench(args, console)
    loaded = bench.load(Drafter(args.drafter, args.drafter))
    rows: list[Rounds] = []
    with show_progress(len(points)) as on_progress:
        for index, (kind, concurrency) in enumerate(points):
            prompts = _prompts(bench, args, kind)
            tell = partial(_tell, on_progress, f"{kind}, {concurrency} at once", index)
            rows += _measure(loaded, prompts, args, (kind, concurrency), tell)
            free_memory()
    for table in _tables(rows):
        console.print(table)
    content = {"settings": settings_of(args), "bar": BAR, "rows": [_to_json(row) for row in rows]}
    write_output(args, console, content)
    return 0


def _points(args: argparse.Namespace) -> list[tuple[str, int]]:
    kinds = [kind.strip() for kind in args.kinds.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kinds: {kind!r} is not one of {', '.join(KINDS)}.")
    loads = numbers("concurrency", args.concurrency, int)
    check_at_least("concurrency", min(loads, default=0), 1)
    for name in ("draft_tokens", "tasks", "rounds"):
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    # Else tasks would come again before they were answered.
    check_at_least("tasks", args.tasks, 2 * max(loads))
    return list(itertools.product(kinds, loads))


def _prompts(bench: Workbench, args: argparse.Namespace, kind: str) -> list[list[int]]:
    """Give the prompts of all rounds, round by round."""
    tasks = distinct_openings(bench.data_dir, args.tasks)
    if len(tasks) < args.tasks:
        raise ConfigError(f"tasks: {args.tasks} exceed the {len(tasks)} that there are.")
    openings = [
        task if kind == "same" else edited(task, round_index, task_index)
        for round_index in range(args.rounds)
        for task_index, task in enumerate(tasks)
    ]
    prompts = render_openings(bench.tokenizer, openings)
    bench.check_fit(max(map(len, prompts)) + args.max_tokens)
    return prompts


def _measure(
    loaded: LoadedDrafter,
    prompts: Sequence[list[int]],
    args: argparse.Namespace,
    point: tuple[str, int],
    tell: Callable[[float], None],
) -> Iterator[Rounds]:
    kind, concurrency = point
    longest = max(map(len, prompts)) + args.max_tokens
    lanes = [
        lane_for(loaded, k, concurrency=concurrency, longest=longest)
        for k in (0, args.draft_tokens, None)
    ]
    last = len(prompts) - 1
    num_tokens = len(prompts) * args.max_tokens
    take_turns(
        lanes,
        _requests(prompts, args.max_tokens),
        lambda: all(lane.is_done_with(last) for lane in lanes),
        lambda: tell(min(1.0, lanes[0].num_tokens / num_tokens)),
    )
    for lane in lanes:
        lane.finish()
        yield from _rounds(lane, lanes[0], (kind, concurrency), args)


def _requests(prompts: Sequence[list[int]], max_tokens: int) -> MakeRequest:
    """Give greedy requests; who is done early goes on with the last prompt, and is not counted."""

    def make(core: EngineCore, number: int) -> Request:
        params = SamplingParams(temperature=0.0, seed=0, max_tokens=max_tokens, ignore_eos=True)
        prompt = list(prompts[min(number, len(prompts) - 1)])
        return make_requests(prompt, params, request_id=f"request-{number}", info=core.info)[0]

    return make


def _rounds(
    lane: Lane, off: Lane, point: tuple[str, int], args: argparse.Namespace
) -> Iterator[Rounds]:
    num_answers = args.tasks * args.rounds
    likeness = [_likeness(lane, number, args.tasks) for number in range(num_answers)]
    spans = {str(index + 1): (index, index + 1) for index in range(args.rounds)}
    if args.rounds > 2:
        spans["2 on"] = (1, args.rounds)
    for name, (first, end) in spans.items():
        answers = range(first * args.tasks, end * args.tasks)
        nearly = [number for number in answers if likeness[number] >= NEARLY]
        yield Rounds(
            kind=point[0],
            concurrency=point[1],
            lane=lane.name,
            name=name,
            tokens_per_pass=_tokens_per_pass(lane, answers),
            speed_up=_speed_up(
                lane, off, answers.start * args.max_tokens, answers.stop * args.max_tokens
            ),
            num_answers=len(answers),
            num_equal=sum(likeness[number] == 1.0 for number in answers),
            num_nearly=len(nearly),
            tokens_per_pass_nearly=_tokens_per_pass(lane, nearly) if nearly else None,
        )


def _speed_up(lane: Lane, off: Lane, start: int, end: int) -> float:
    """Give the speed over `off` between two counts of tokens; all rounds have as many."""
    own, plain = (one.seconds_at(end) - one.seconds_at(start) for one in (lane, off))
    return plain / own


def _likeness(lane: Lane, number: int, num_tasks: int) -> float:
    """Give how much of an answer stood in the earlier one of its task that is most like it."""
    earlier = range(number % num_tasks, number, num_tasks)
    answer = lane.answers[number]
    ratios = (
        SequenceMatcher(None, lane.answers[other], answer, autojunk=False).ratio()
        for other in earlier
    )
    return max(ratios, default=0.0)


def _tokens_per_pass(lane: Lane, answers: Sequence[int]) -> float:
    num_tokens = sum(len(lane.answers[number]) for number in answers)
    return num_tokens / sum(lane.num_passes[number] for number in answers)


def _tell(on_progress: OnProgress, point: str, num_done: int, share: float) -> None:
    on_progress(point, num_done + share)


def _to_json(row: Rounds) -> dict[str, Any]:
    return {**rounded(asdict(row)), "is_met": row.tokens_per_pass >= BAR}


def _tables(rows: Sequence[Rounds]) -> Iterator[Table]:
    points = dict.fromkeys((row.kind, row.concurrency) for row in rows)
    for kind, concurrency in points:
        here = [row for row in rows if (row.kind, row.concurrency) == (kind, concurrency)]
        title = (
            f"{kind} requests, {concurrency} at once: tau | speed over off; the bar is tau {BAR:g}"
        )
        yield _table(title, here)


def _table(title: str, rows: Sequence[Rounds]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("round")
    lanes = [lane for lane in dict.fromkeys(row.lane for row in rows) if lane != "off"]
    for lane in lanes:
        table.add_column(lane if lane == "auto" else f"k={lane}", justify="right")
    for name in ("equal", "nearly", "tau of these"):
        table.add_column(name, justify="right")
    for name in dict.fromkeys(row.name for row in rows):
        row = {row.lane: row for row in rows if row.name == name}
        auto = row["auto"]
        nearly = auto.tokens_per_pass_nearly
        table.add_row(
            name,
            *(f"{row[lane].tokens_per_pass:.2f} | {row[lane].speed_up:.2f}x" for lane in lanes),
            f"{auto.num_equal} of {auto.num_answers}",
            f"{auto.num_nearly} of {auto.num_answers}",
            "" if nearly is None else f"{nearly:.2f}",
        )
    return table


def main() -> int:
    """Run the program."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
