"""`python -m benchmarks.peers traffic`: our server and a peer's under the same open load."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Page, show_page
from benchmarks.peers import traffic_rounds
from benchmarks.peers.running_server import RunningServer, ended_like_ctrl_c
from benchmarks.peers.traffic_rounds import Measured, OnShare, Pair, Plan, Work, clipped
from benchmarks.peers.traffic_tables import capacity_grid, charts, grids
from benchmarks.peers.two_servers import (
    Lane,
    add_server_flags,
    both_running,
    commands_of,
    facts,
    open_lanes,
    told,
)
from benchmarks.peers.worker_process import variables_of
from benchmarks.program import add_output_flags
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded, settings_of
from benchmarks.rounds import Spread
from benchmarks.serving.arrivals import read_trace
from benchmarks.serving.event_loop import run_loop
from benchmarks.serving.prompt_sets import CHAT, FORMS, made_up, prompt_set
from benchmarks.sweep_flags import add_data_flag, numbers
from benchmarks.workbench import check_at_least
from engine.errors import ConfigError

_TRACE = Path("azure_llm_trace/AzureLLMInferenceTrace_conv.csv")
_PROMPTS = 512


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    add_server_flags(parser)
    parser.add_argument(
        "--shares",
        default="50,80,95",
        metavar="P,P",
        help="Poisson arrivals at so many %% of the lower capacity (default: 50,80,95)",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of Poisson arrivals, each time (default: 10)"
    )
    parser.add_argument("--prompts", default=CHAT, help=f"{', '.join(FORMS)} (default: {CHAT})")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (default: 64)")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help=f"of Azure's form (default: {_TRACE.name} of the shared data)",
    )
    parser.add_argument(
        "--trace-share",
        type=float,
        default=80.0,
        help="of the lower capacity for the trace's requests, in %% (default: 80)",
    )
    parser.add_argument(
        "--requests", type=int, default=48, help="of the trace; 0 = no trace (default: 48)"
    )
    parser.add_argument(
        "--streams", type=int, default=32, help="that find the capacity (default: 32)"
    )
    add_data_flag(parser)
    add_output_flags(parser, "peers_traffic")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured, or the peer has no environment.
        EngineError: a server ended while it was measured.
        InvalidRequestError: a prompt cannot be read.
        ModelLoadError: a server did not start.
    """
    commands, console = commands_of(args), Console()
    plan = _plan(args)
    with (
        ended_like_ctrl_c(),
        show_progress(2 * plan.num_steps) as on_progress,
        both_running(commands, lambda what: on_progress(what, 0.0)) as servers,
    ):
        lanes, measured = run_loop(_measure(servers, plan, args.temperature, on_progress))
    page = _page(args, plan, lanes, measured)
    show_page(console, page)
    write_page(args, console, page, _content(args, plan, lanes, measured))
    return 0


async def _measure(
    servers: Sequence[RunningServer], plan: Plan, temperature: float, on_progress: OnProgress
) -> tuple[list[Lane], Measured]:
    with ExitStack() as stack:
        lanes = await open_lanes(servers, stack, temperature)
        return lanes, await traffic_rounds.measure(lanes, plan, _counted(on_progress))


def _counted(on_progress: OnProgress) -> OnShare:
    """Turn shares of turns into turns that are done."""
    done = 0

    def on_share(what: str, share: float) -> None:
        nonlocal done
        on_progress(what, done + share)
        done += share == 1.0

    return on_share


def _plan(args: argparse.Namespace) -> Plan:
    for name, low in (("streams", 1), ("requests", 0), ("max_tokens", 1)):
        check_at_least(name.replace("_", "-"), getattr(args, name), low)
    shares = numbers("shares", args.shares, float)
    for name, values in (
        ("shares", shares),
        ("seconds", [args.seconds]),
        ("trace-share", [args.trace_share]),
    ):
        if not values or not all(0 < value < float("inf") for value in values):
            raise ConfigError(f"{name}: there is no number, or one that is not above 0.")
    poisson = Work(
        name="Poisson",
        prompts=prompt_set(args.prompts, args.data_dir, _PROMPTS, args.seed),
        shares=[share / 100 for share in sorted(set(shares))],
        seconds=args.seconds,
    )
    trace = _traced(args)
    return Plan(
        works=[poisson] if trace is None else [poisson, trace],
        streams=args.streams,
        max_tokens=args.max_tokens,
        repeats=args.repeats,
        seed=args.seed,
    )


def _traced(args: argparse.Namespace) -> Work | None:
    """Give the trace's work; None where there is none to replay."""
    if args.requests == 0:
        if args.trace is not None:
            raise ConfigError("requests: 0 of the --trace leave nothing of it.")
        return None
    check_at_least("requests", args.requests, 2)
    args.trace = args.trace or args.data_dir / _TRACE
    traced = read_trace(args.trace, args.requests)
    lengths, num_clipped = clipped(
        [(each.num_prompt_tokens, each.num_output_tokens) for each in traced], args.max_model_len
    )
    prompts = made_up(args.trace.name, lengths, args.seed)
    source = f"{prompts.source}, as long as the trace's, {num_clipped} of them clipped"
    return Work(
        name="trace",
        prompts=replace(prompts, source=source),
        shares=[args.trace_share / 100],
        arrivals_s=[each.arrival_s for each in traced],
    )


def _page(args: argparse.Namespace, plan: Plan, lanes: Sequence[Lane], measured: Measured) -> Page:
    told_facts = facts(args)
    for work in plan.works:
        told_facts[f"{work.name} prompts"] = f"{work.prompts.name}: {work.prompts.source}"
    told_facts["rounds"] = f"{args.repeats}, both servers in turn at every load"
    notes = [f"{lane.label}: {note}" for lane in lanes for note in lane.door.notes]
    for pair in measured.pairs:
        for label, point in pair.points.items():
            place = f"{label} at {pair.load.label}"
            notes += [f"errors of {place}: {n} x {kind}" for kind, n in point.errors.items()]
            if point.num_short:
                notes.append(f"answers of {place}: {point.num_short} shorter than asked for")
    return Page(
        title="Open load: Outdraft's server and a peer's",
        facts=told_facts,
        grids=[capacity_grid(measured.capacities), *grids(measured.pairs)],
        charts=charts(measured.pairs),
        notes=notes,
    )


def _content(
    args: argparse.Namespace, plan: Plan, lanes: Sequence[Lane], measured: Measured
) -> dict[str, Any]:
    return {
        "settings": settings_of(args),
        "environment": variables_of(args.threads),
        "servers": [told(lane.server) for lane in lanes],
        "prompts": {work.name: work.prompts.source for work in plan.works},
        "capacities": rounded(measured.capacities),
        "points": [_row(pair) for pair in measured.pairs],
    }


def _row(pair: Pair) -> dict[str, Any]:
    lanes = {
        label: {
            "errors": point.errors,
            "short_answers": point.num_short,
            "numbers": _named(point.spread),
            "rounds": rounded(point.rounds),
        }
        for label, point in pair.points.items()
    }
    load = pair.load
    return {
        "load": load.label,
        "requests": load.num_requests,
        "requests_per_s_offered": rounded((load.num_requests - 1) / load.arrivals_s[-1]),
        "lanes": lanes,
        "ratios": _named(pair.ratios),
    }


def _named(spread: Spread) -> dict[str, Any]:
    return {
        name: None if found is None else dict(zip(("median", "low", "high"), found, strict=True))
        for name, found in rounded(dict(spread)).items()
    }
