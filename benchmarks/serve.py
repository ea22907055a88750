"""What a server gives its callers: latencies, rates, goodput and costs, over load.

`outdraft bench serve` and `python -m benchmarks.serve` are this program; `--help` tells the
options, `benchmarks/README.md` the method. With `--url` it measures any OpenAI-compatible server,
else one of our own that it starts. It prints tables and writes JSON, an HTML page, and plots.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Page, show_page
from benchmarks.program import run_program
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded, settings_of
from benchmarks.serving import flags
from benchmarks.serving.door import Door, open_door
from benchmarks.serving.energy import Meter, find_meters
from benchmarks.serving.event_loop import run_loop
from benchmarks.serving.flags import Plan, headers_of, max_tokens_of, plan_of
from benchmarks.serving.http_stream import HttpClient, Target, parse_target
from benchmarks.serving.points import CLOCK, Load, Point, Runner
from benchmarks.serving.processes import engine_words, null_server, own_server
from benchmarks.serving.prompt_sets import Ask, PromptSet
from benchmarks.serving.quantities import point_charts, point_grids
from benchmarks.serving.statistics import Terms

_START_S = 900.0
_LOCAL = ("127.0.0.1", "localhost", "::1")
_FLOOR_PER_STREAM = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found.

    Attributes:
        points: one for each load.
        floor: the client against the null server; None = it was not asked for.
        door: how the server was asked.
        meters: of energy.
    """

    points: list[Point]
    floor: Point | None
    door: Door
    meters: list[Meter]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured, or the server does not answer.
        InvalidRequestError: a prompt cannot be read.
        ModelLoadError: our own server did not start.
    """
    plan, headers, console = plan_of(args), headers_of(args), Console()
    if args.url is not None:
        parse_target(args.url, headers)
    floor = _measure_floor(plan, args) if args.client_floor else None
    with _server(args) as url, show_progress(len(plan.loads) * args.repeats) as on_progress:
        target = parse_target(url, headers)
        measured = run_loop(_measure(args, plan, target, floor, on_progress))
    page = _page(args, plan, measured)
    show_page(console, page)
    write_page(args, console, page, _content(args, plan, measured))
    return 0


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """Give the address that was named, or that of our own server while the block runs."""
    if args.url is not None:
        yield args.url
        return
    with own_server(engine_words(args), _START_S) as server:
        yield server.url


async def _measure(
    args: argparse.Namespace,
    plan: Plan,
    target: Target,
    floor: Point | None,
    on_progress: OnProgress,
) -> Measured:
    meters = find_meters() if target.host in _LOCAL else []
    with closing(HttpClient(target, CLOCK, args.timeout_s)) as client:
        fits = bool(plan.prompts.prompt_tokens)
        door = await open_door(client, args.endpoint, args.model_name, args.temperature, fits=fits)
        runner = Runner(
            door=door,
            asks=_asks(door, plan.prompts),
            max_tokens=max_tokens_of(args),
            seed=args.seed,
            terms=plan.terms,
            meters=meters,
        )
        await runner.warm_up(args.warm_up, args.warm_up)
        points = await runner.measure(plan.loads, args.repeats, on_progress)
    return Measured(points, floor, door, meters)


def _asks(door: Door, prompts: PromptSet) -> list[Ask]:
    if not prompts.prompt_tokens:
        return prompts.asks
    pairs = zip(prompts.asks, prompts.prompt_tokens, strict=True)
    return [door.fit(ask, num_tokens) for ask, num_tokens in pairs]


def _measure_floor(plan: Plan, args: argparse.Namespace) -> Point:
    """Measure this client alone, with as many streams as the run will have at most."""
    streams = max(load.concurrency or 1 for load in plan.loads)
    load = Load("null server", 1.0, _FLOOR_PER_STREAM * streams, concurrency=streams)

    async def measure(url: str) -> Point:
        with closing(HttpClient(parse_target(url, {}), CLOCK, args.timeout_s)) as client:
            door = await open_door(client, args.endpoint, None, 0.0, fits=False)
            runner = Runner(
                door=door,
                asks=[Ask("floor")],
                max_tokens=max_tokens_of(args),
                seed=0,
                terms=Terms(),
            )
            await runner.warm_up(streams, streams)
            return (await runner.measure([load], 1, lambda name, done: None))[0]

    with null_server() as url:
        return run_loop(measure(url))


def _page(args: argparse.Namespace, plan: Plan, measured: Measured) -> Page:
    spreads = {point.load.label: point.spread for point in measured.points}
    places = [point.load.place for point in measured.points]
    floor = None if measured.floor is None else measured.floor.spread
    own = "outdraft serve " + " ".join(engine_words(args)) if args.url is None else args.url
    facts = {
        "server": own.strip(),
        "model": measured.door.model,
        "endpoint": f"{args.endpoint}, streamed",
        "prompts": f"{plan.prompts.name}: {plan.prompts.source}",
        "answers": _answers(args, plan),
        "sampling": f"temperature {args.temperature:g}, seed {args.seed}",
        "rounds": f"{args.repeats}, all points in each, after {args.warm_up} requests",
    }
    return Page(
        title="Outdraft bench serve",
        facts=facts,
        grids=point_grids(spreads, floor),
        charts=point_charts(spreads, places, plan.x_label),
        notes=_notes(args, measured),
    )


def _answers(args: argparse.Namespace, plan: Plan) -> str:
    if plan.prompts.prompt_tokens:
        return "as long as the prompts' set says"
    return f"{max_tokens_of(args)} tokens at most"


def _notes(args: argparse.Namespace, measured: Measured) -> list[str]:
    notes = list(measured.door.notes)
    num_short = sum(point.num_short for point in measured.points)
    if num_short and "ignore_eos" in measured.door.extras:
        notes.append(f"{num_short} answers were shorter than asked for, in spite of ignore_eos")
    for point in measured.points:
        for kind, count in point.errors.items():
            notes.append(f"errors at {point.load.label}: {count} x {kind}")
    if measured.meters:
        notes.append(f"energy of this machine: {', '.join(m.name for m in measured.meters)}")
    elif args.url is not None and urlsplit(args.url).hostname not in _LOCAL:
        notes.append("energy: absent, the server is on another machine")
    else:
        notes.append("energy: absent, neither RAPL nor NVML can be read here")
    return notes


def _content(args: argparse.Namespace, plan: Plan, measured: Measured) -> dict[str, Any]:
    return {
        "settings": settings_of(args),
        "model": measured.door.model,
        "prompts": {"name": plan.prompts.name, "source": plan.prompts.source},
        "fields_taken": list(measured.door.extras),
        "meters": [meter.name for meter in measured.meters],
        "client_floor": None if measured.floor is None else _row(measured.floor),
        "points": [_row(point) for point in measured.points],
    }


def _row(point: Point) -> dict[str, Any]:
    spread = {
        name: None if found is None else dict(zip(("median", "low", "high"), found, strict=True))
        for name, found in point.spread.items()
    }
    return {
        "load": point.load.label,
        "concurrency": point.load.concurrency,
        "errors": point.errors,
        "short_answers": point.num_short,
        "numbers": rounded(spread),
        "rounds": rounded(point.rounds),
    }


def main() -> int:
    """Run the benchmark as a program of its own."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
