"""`python -m benchmarks.peers prefix`: a prompt's second time over its first, on both."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Grid, Page, show_page
from benchmarks.peers.running_server import RunningServer, ended_like_ctrl_c
from benchmarks.peers.traffic_rounds import ratios
from benchmarks.peers.two_servers import (
    Lane,
    add_server_flags,
    asked,
    both_running,
    commands_of,
    facts,
    in_turn,
    open_lanes,
    told,
)
from benchmarks.peers.worker_process import variables_of
from benchmarks.program import add_output_flags
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded, settings_of
from benchmarks.rounds import Numbers, Quantity, grid_of, over_rounds
from benchmarks.serving.event_loop import run_loop
from benchmarks.serving.prompt_sets import Ask, words_of
from benchmarks.serving.records import Record, read_reply
from benchmarks.workbench import check_at_least
from engine.errors import ConfigError, EngineError

_COMPARED = ("cold_ms", "cached_ms", "cached_over_cold")
_QUANTITIES = (
    Quantity("cold_ms", "TTFT, never seen, ms", 2),
    Quantity("cached_ms", "TTFT, asked again, ms", 2),
    Quantity("cached_over_cold", "asked again over never seen", 3),
    Quantity("cached_share", "prompt tokens from the cache, asked again", 3),
    Quantity("prompt_tokens", "prompt tokens", 0),
    Quantity("idle_cpu", "processors of the other one", 3),
)
_MS = 1000.0

Rounds = dict[str, list[Numbers]]
"""Numbers of each repeat, by the lane's label."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    add_server_flags(parser)
    parser.set_defaults(repeats=10)
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="default: 1500")
    parser.add_argument("--max-tokens", type=int, default=16, help="of an answer (default: 16)")
    add_output_flags(parser, "peers_prefix")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured, or the peer has no environment.
        EngineError: a server ended, or did not answer a request.
        ModelLoadError: a server did not start.
    """
    commands, console = commands_of(args), Console()
    check_at_least("prompt-tokens", args.prompt_tokens, 1)
    check_at_least("max-tokens", args.max_tokens, 1)
    if args.prompt_tokens + args.max_tokens > args.max_model_len:
        raise ConfigError(
            f"prompt-tokens: {args.prompt_tokens} and {args.max_tokens} of the answer exceed the "
            f"{args.max_model_len} of a request."
        )
    with (
        ended_like_ctrl_c(),
        show_progress(args.repeats) as on_progress,
        both_running(commands, lambda what: on_progress(what, 0.0)) as servers,
    ):
        lanes, rounds = run_loop(_measure(args, servers, on_progress))
    page = _page(args, lanes, rounds)
    show_page(console, page)
    write_page(args, console, page, _content(args, lanes, rounds))
    return 0


async def _measure(
    args: argparse.Namespace, servers: Sequence[RunningServer], on_progress: OnProgress
) -> tuple[list[Lane], Rounds]:
    with ExitStack() as stack:
        lanes = await open_lanes(servers, stack, args.temperature)
        rounds: Rounds = {lane.label: [] for lane in lanes}
        for number in range(-1, args.repeats):  # the first warms up
            on_progress(f"prompt {number + 1}", max(number, 0.0))
            text = words_of(args.prompt_tokens, f"{args.seed}-{number}")
            ask = lanes[0].door.fit(Ask(text), args.prompt_tokens)
            for lane in in_turn(lanes, number):
                with asked(lane, lanes) as used:
                    numbers = await _ask_twice(lane, ask, args, f"prefix-{args.seed}-{number}")
                if number >= 0:
                    rounds[lane.label].append(numbers | used)
        return lanes, rounds


async def _ask_twice(lane: Lane, ask: Ask, args: argparse.Namespace, salt: str) -> Numbers:
    cold = await _ask_once(lane, ask, args, salt)
    cached = await _ask_once(lane, ask, args, salt)
    assert cold.ttft_s is not None, "an answer without tokens is a failure"
    assert cached.ttft_s is not None, "an answer without tokens is a failure"
    share = None
    if cached.num_cached_tokens is not None and cached.num_prompt_tokens:
        share = cached.num_cached_tokens / cached.num_prompt_tokens
    return {
        "cold_ms": cold.ttft_s * _MS,
        "cached_ms": cached.ttft_s * _MS,
        "cached_over_cold": cached.ttft_s / cold.ttft_s,
        "cached_share": share,
        "prompt_tokens": cold.num_prompt_tokens,
    }


async def _ask_once(lane: Lane, ask: Ask, args: argparse.Namespace, salt: str) -> Record:
    reply = await lane.door.send(lane.door.body(ask, args.max_tokens, args.seed, salt))
    record = read_reply(0, reply.sent_s, args.max_tokens, reply)
    if record.failure is not None or record.ttft_s is None:
        why = record.failure or "an answer without tokens"
        raise EngineError(f"{lane.label}'s server did not answer a prompt: {why}.")
    return record


def _page(args: argparse.Namespace, lanes: Sequence[Lane], rounds: Rounds) -> Page:
    said = facts(args)
    said["prompts"] = f"{args.repeats} made-up texts, each asked twice, nothing else in flight"
    said["answers"] = f"{args.max_tokens} tokens at most"
    notes = [f"{lane.label}: {note}" for lane in lanes for note in lane.door.notes]
    title = "A prompt's second time, on Outdraft's server and a peer's"
    return Page(title=title, facts=said, grids=[_grid(args, rounds)], notes=notes)


def _grid(args: argparse.Namespace, rounds: Rounds) -> Grid:
    columns = {label: over_rounds(numbers) for label, numbers in rounds.items()}
    title = f"a prompt of {args.prompt_tokens} tokens: median (lowest to highest)"
    return grid_of(
        title, _QUANTITIES, columns | {" / ".join(columns): over_rounds(_ratios(rounds))}
    )


def _ratios(rounds: Rounds) -> list[Numbers]:
    own, other = rounds.values()
    return [ratios(*both, _COMPARED) for both in zip(own, other, strict=True)]


def _content(args: argparse.Namespace, lanes: Sequence[Lane], rounds: Rounds) -> dict[str, Any]:
    return {
        "settings": settings_of(args),
        "environment": variables_of(args.threads),
        "servers": [told(lane.server) for lane in lanes],
        "rounds": {label: rounded(numbers) for label, numbers in rounds.items()},
        "ratios": rounded(_ratios(rounds)),
    }
