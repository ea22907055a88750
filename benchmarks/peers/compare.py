"""`python -m benchmarks.peers compare`: ours beside other engines, alternating in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.peers.comparison import Failure, Lane, Measured, Plan, loaded_lanes, measure
from benchmarks.peers.comparison_tables import ratios, tables
from benchmarks.peers.environment import add_environments_flag
from benchmarks.peers.protocol import Load
from benchmarks.peers.ways import OURS, PEERS, WAYS, Way, choose
from benchmarks.peers.worker_process import command_of, start, variables_of
from benchmarks.program import add_output_flags, write_output
from benchmarks.report import rounded, settings_of
from benchmarks.sweep_flags import add_data_flag, numbers
from benchmarks.workbench import check_at_least
from benchmarks.workloads import WORKLOADS, Workload, built_in_workload
from engine.config_files import demo_config
from engine.errors import ConfigError
from engine.prompts import PromptTokenizer
from engine.tokenization import load_tokenizer

DTYPES = ("float32", "bfloat16")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("--model", metavar="DIR", help="the target's folder (default: the demo's)")
    parser.add_argument("--draft", metavar="DIR", help="a draft's folder (default: the demo's)")
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        metavar="NAME,NAME",
        help=f"peers, or single ways of them: {', '.join(way.label for way in WAYS)} "
        f"(default: {','.join(PEERS)})",
    )
    parser.add_argument(
        "--speculation", default="off,best", help="of off, best (default: off,best)"
    )
    parser.add_argument("--concurrency", default="1,8,32", help="default: 1,8,32")
    parser.add_argument("--dtype", default="float32", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--repeats", type=int, default=5, help="of each point (default: 5)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="requests of a run, over those in flight (default: 2)",
    )
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (default: 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy")
    parser.add_argument(
        "--num-draft-tokens", type=int, default=4, help="of peers with a fixed number (default: 4)"
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads of each worker (default: physical cores)"
    )
    parser.add_argument("--workload", default="chat", choices=WORKLOADS, help="default: chat")
    add_environments_flag(parser)
    add_data_flag(parser)
    add_output_flags(parser, "peers")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured, or a peer has no environment.
        InvalidRequestError: the model has no tokenizer.
    """
    _name_models(args)
    args.threads = args.threads or psutil.cpu_count(logical=False) or 1
    dtypes = _words(args.dtype)
    if not dtypes or set(dtypes) - set(DTYPES):
        raise ConfigError(f"dtype: {args.dtype!r} is not of {', '.join(DTYPES)}.")
    ways = choose(_words(args.peers), _words(args.speculation), has_draft=args.draft is not None)
    for way in ways:
        command_of(way, args.environments, args.threads)  # refuses, before anything is loaded
    tokenizer = PromptTokenizer(args.model, load_tokenizer(args.model))
    workload = built_in_workload(args.workload, tokenizer, args.data_dir)
    plan = _plan(args, workload)
    console, lanes_told, failures = Console(), list[dict[str, Any]](), list[Failure]()
    measured: list[Measured] = []
    with console.status("starting") as status:
        for dtype in dtypes:
            load_of = partial(_load, args, plan, dtype, workload.longest_prompt)
            begin = partial(start, folder=args.environments, threads=args.threads)
            with loaded_lanes(ways, begin, load_of, failures, status.update) as lanes:
                lanes_told += [_told(lane, dtype) for lane in lanes]
                measured += measure(lanes, dtype, plan, failures, status.update)
    for table in tables(measured):
        console.print(table)
    _tell_failures(console, failures)
    write_output(args, console, _content(args, workload, lanes_told, measured, failures))
    return int(any(failure.way.peer == OURS for failure in failures))


def _name_models(args: argparse.Namespace) -> None:
    """Fill in the demo pair where no model is named."""
    if args.model is None:
        demo = demo_config()
        args.model, args.draft = demo.model.model, args.draft or demo.speculation.draft
    for role in ("model", "draft"):
        folder = getattr(args, role)
        if folder is not None:
            if not (Path(folder) / "config.json").is_file():
                raise ConfigError(f"{role}: {folder} is no folder of a checkpoint.")
            setattr(args, role, str(Path(folder).absolute()))


def _plan(args: argparse.Namespace, workload: Workload) -> Plan:
    for name in ("rounds", "repeats", "max_tokens", "threads", "num_draft_tokens"):
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    check_at_least("temperature", args.temperature, 0)
    concurrencies = numbers("concurrency", args.concurrency, int)
    check_at_least("concurrency", min(concurrencies, default=0), 1)
    return Plan(
        prompts=workload.prompts,
        concurrencies=concurrencies,
        rounds=args.rounds,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        repeats=args.repeats,
    )


def _load(args: argparse.Namespace, plan: Plan, dtype: str, longest: int, way: Way) -> Load:
    return Load(
        model=args.model,
        draft=args.draft,
        dtype=dtype,
        threads=args.threads,
        way=way.name,
        max_concurrency=max(plan.concurrencies),
        # Drafts of the last token reach beyond the answer.
        max_model_len=longest + plan.max_tokens + args.num_draft_tokens + 1,
        num_draft_tokens=args.num_draft_tokens,
    )


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _told(lane: Lane, dtype: str) -> dict[str, Any]:
    return {"way": lane.way.label, "dtype": dtype, **rounded(asdict(lane.loaded))}


def _tell_failures(console: Console, failures: Sequence[Failure]) -> None:
    for failure in failures:
        line = f"{failure.dtype}: did not run: {failure.said}"
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)


def _content(
    args: argparse.Namespace,
    workload: Workload,
    lanes: list[dict[str, Any]],
    measured: Sequence[Measured],
    failures: Sequence[Failure],
) -> dict[str, Any]:
    return {
        "settings": settings_of(args),
        "environment": variables_of(args.threads),
        "workload": workload.source,
        "lanes": lanes,
        "points": [_point(point) for point in measured],
        "ratios": [rounded(asdict(ratio)) for ratio in ratios(measured)],
        "failures": [
            {"way": failure.way.label, "dtype": failure.dtype, "said": failure.said.splitlines()[0]}
            for failure in failures
        ],
    }


def _point(point: Measured) -> dict[str, Any]:
    return {
        "way": point.way.label,
        "dtype": point.dtype,
        "concurrency": point.concurrency,
        "num_tokens": point.num_tokens,
        "tokens_per_second": round(point.rate, 2),
        "seconds": rounded(point.seconds),
        "idle_cpu": rounded(point.idle_cpu),
        "agreement": None if point.agreement is None else rounded(asdict(point.agreement)),
    }
