"""How cost grows with work on this machine, and whether it keeps below its bars.

`outdraft bench growth` and `python -m benchmarks.growth` are this program. Its parts: `context` and
`concurrency` time plain decode steps of a model with room for long contexts; `host` tells what of
a step is not the model; `memory` holds idle requests and streams; `server` compares the server's
processor time with the engine's. The last three measure the model that would be served.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console

from benchmarks.growth.decoding import margin_tokens
from benchmarks.growth.findings import Findings, verdict_grid
from benchmarks.growth.idle_engine import IdlePlan, idle_requests
from benchmarks.growth.served import ServedPlan, idle_streams, processor_time
from benchmarks.growth.steps import Plan, Subject, host_share, over_concurrency, over_context
from benchmarks.lanes import free_memory
from benchmarks.page_files import write_page
from benchmarks.pages import Page, show_page
from benchmarks.peers.random_checkpoint import Shape, write_checkpoint
from benchmarks.program import add_output_flags
from benchmarks.report import machine_in_words, settings_of
from benchmarks.serving.processes import engine_words
from benchmarks.sweep_flags import numbers
from benchmarks.workbench import check_at_least
from engine.config import EngineConfig
from engine.config_files import load_config, resolve
from engine.config_flags import add_config_flags, config_from_args
from engine.errors import ConfigError
from engine.model_pair import load_pair, load_target, resolve_device, set_threads
from engine.tokenization import TokenBytes

PARTS = ("memory", "server", "host", "context", "concurrency")
_LEAST_POINTS = 3
_COUNTS = {
    "steps": (24, "timed at a point, in each round"),
    "repeats": (5, "rounds, after one to warm up where points are steps"),
    "short_context": (128, "tokens of prompts of parts concurrency and host"),
    "waiting": (2000, "requests held in the queue, part memory"),
    "running": (64, "requests held running, part memory"),
    "idle_prompt_tokens": (64, "of their prompts"),
    "idle_streams": (500, "open at a server at once, part memory"),
    "streams": (64, "busy at a server at once, part server"),
    "requests": (192, "of a round of them"),
    "answer_tokens": (64, "of their answers"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    group = parser.add_argument_group("what is measured")
    every = ",".join(PARTS)
    group.add_argument("--parts", default=every, metavar="P,P", help=f"default: {every}")
    group.add_argument(
        "--long-model",
        metavar="MODEL",
        help="model of parts context, concurrency and, beside the served one, host (default: a "
        "125M Llama with random weights, written to a temporary folder)",
    )
    for name, default, what in (
        ("contexts", "128,512,1024,2048,4096,8192", "tokens of prompts of part context"),
        ("context-concurrency", "1,8", "requests at once there"),
        ("concurrency", "1,2,4,8,16,32,64,128", "requests at once of part concurrency"),
        ("host-concurrency", "1,8,32", "requests at once of part host"),
        ("temperatures", "0,1", "of part host"),
    ):
        group.add_argument(f"--{name}", default=default, help=f"{what} (default: {default})")
    for name, (count, what) in _COUNTS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=int, default=count, help=f"{what} (default: {count})")
    group.add_argument(
        "--idle-s", type=float, default=20.0, help="that an idle server is watched (default: 20)"
    )
    group.add_argument(
        "--start-s", type=float, default=900.0, help="that a server may take (default: 900)"
    )
    add_output_flags(parser, "growth")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured, or a value cannot be measured.
        ContextLengthExceededError: a model has no room for what is asked.
        ModelLoadError: a model cannot be loaded, or the server did not start.
        EngineError: the server did not answer.
    """
    work = _work(args)
    console = Console()
    set_threads(work.served.model.threads)
    total, rows = Findings(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in _measurements(args, work, Path(folder)).items():
            found = measure()
            total.add(found)
            rows[name] = found.rows
            free_memory()
    total.grids.append(verdict_grid(total.verdicts))
    page = Page(
        title="Outdraft bench growth",
        facts={
            "served": str(work.served.model.model),
            "machine": machine_in_words("cpu"),
            "rounds": str(args.repeats),
        },
        grids=total.grids,
        charts=total.charts,
        notes=total.notes,
    )
    show_page(console, page)
    content = {
        "settings": settings_of(args),
        "facts": page.facts,
        "verdicts": [asdict(verdict) for verdict in total.verdicts],
        "rows": rows,
    }
    write_page(args, console, page, content)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a command line asks for, checked.

    Attributes:
        parts: in the order in which they are measured.
        served: settings of the engine that would be served.
        contexts: tokens of prompts, in order.
        context_loads: requests at once over contexts.
        loads: requests at once at a short context, in order.
        host_loads: requests at once of which host work is told.
        temperatures: likewise.
    """

    parts: list[str]
    served: EngineConfig
    contexts: list[int]
    context_loads: list[int]
    loads: list[int]
    host_loads: list[int]
    temperatures: list[float]


def _work(args: argparse.Namespace) -> _Work:
    parts = [word.strip() for word in args.parts.split(",")]
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"parts: {part!r} is not one of {', '.join(PARTS)}.")
    for name in (*_COUNTS, "idle_s", "start_s"):
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    temperatures = sorted(set(numbers("temperatures", args.temperatures, float)))
    check_at_least("temperatures", min(temperatures, default=-1.0), 0)
    base = None if args.config is None else load_config(args.config)
    served = resolve(config_from_args(args, base))
    if resolve_device(served.model.device).type != "cpu":
        raise ConfigError("device: parts of a step are told apart on a CPU alone; give cpu.")
    return _Work(
        parts=[part for part in PARTS if part in parts],
        served=served,
        contexts=_counts(args, "contexts", _LEAST_POINTS),
        context_loads=_counts(args, "context_concurrency", 1),
        loads=_counts(args, "concurrency", _LEAST_POINTS),
        host_loads=_counts(args, "host_concurrency", 1),
        temperatures=temperatures,
    )


def _counts(args: argparse.Namespace, name: str, least: int) -> list[int]:
    flag, text = name.replace("_", "-"), getattr(args, name)
    counts = sorted(set(numbers(flag, text, int)))
    if len(counts) < least or counts[0] < 1:
        raise ConfigError(f"{flag}: {text!r} needs numbers from 1, {least} at least.")
    return counts


def _measurements(
    args: argparse.Namespace, work: _Work, folder: Path
) -> dict[str, Callable[[], Findings]]:
    """Give what measures each part that was asked for; models are loaded by it, not before."""
    plan = Plan(args.repeats, args.steps)
    long = _LongModel(args, work, folder)
    all_parts: dict[str, Callable[[], Findings]] = {
        "memory": lambda: _memory(args, work),
        "server": lambda: processor_time(_served_plan(args)),
        "host": lambda: host_share(
            [_subject(work.served), long.subject],
            work.host_loads,
            work.temperatures,
            args.short_context,
            plan,
        ),
        "context": lambda: over_context(long.subject, work.contexts, work.context_loads, plan),
        "concurrency": lambda: over_concurrency(long.subject, work.loads, args.short_context, plan),
    }
    return {part: all_parts[part] for part in work.parts}


def _memory(args: argparse.Namespace, work: _Work) -> Findings:
    held = IdlePlan(args.waiting, args.running, args.idle_prompt_tokens, args.repeats)
    found = idle_requests(work.served, load_pair(work.served), held)
    free_memory()
    streams = idle_streams(_served_plan(args))
    found.add(streams)
    return replace(found, rows=found.rows + streams.rows)


def _served_plan(args: argparse.Namespace) -> ServedPlan:
    return ServedPlan(
        words=engine_words(args),
        start_s=args.start_s,
        idle_streams=args.idle_streams,
        streams=args.streams,
        requests=max(args.requests, args.streams),
        answer_tokens=args.answer_tokens,
        idle_s=args.idle_s,
        repeats=args.repeats,
    )


def _subject(config: EngineConfig, name: str | None = None) -> Subject:
    """Load a target for itself."""
    models = load_target(config)
    tokenizer = models.load_tokenizer()
    tokens = None if tokenizer is None else TokenBytes(tokenizer)
    return Subject(name or Path(models.target.name).name, config, models, tokens)


class _LongModel:
    """The model with room for long contexts, written and loaded when it is first wanted."""

    def __init__(self, args: argparse.Namespace, work: _Work, folder: Path) -> None:
        self._args, self._work, self._folder = args, work, folder

    @cached_property
    def subject(self) -> Subject:
        """The model, ready."""
        name, label = self._args.long_model, None
        if name is None:
            name, label = str(self._folder), "125M Llama"
            write_checkpoint(self._folder, Shape(max_positions=self._num_positions()))
        model = replace(self._work.served.model, model=name, revision=None, max_model_len=None)
        return _subject(replace(self._work.served, model=model), label)

    def _num_positions(self) -> int:
        work, num_steps = self._work, int(self._args.steps)
        asked = [
            (max(work.context_loads), max(work.contexts)),
            (max(work.loads), int(self._args.short_context)),
            (max(work.host_loads), int(self._args.short_context)),
        ]
        return max(
            context + margin_tokens(work.served, load, context, num_steps)
            for load, context in asked
        )
