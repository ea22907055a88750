"""How soon `auto` recovers when the workload drifts: copy-heavy, then chat, then copy-heavy.

Two scenarios. `seen`: with `suffix` and the draft model, requests whose answers came before, then
dialogues that never did, then the former again. `synthetic`: with the draft model alone, whose
drafts dice accept at a high rate, then at a low one, then at the high one again. At a border all
requests in flight are dropped and the next phase's begin, in engines that know all that was learnt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.drafters import Drafter, LoadedDrafter
from benchmarks.drift_series import Phase, Trace, phase_to_json, trace_of
from benchmarks.lanes import free_memory, lane_for
from benchmarks.program import run_program, write_output
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import settings_of
from benchmarks.side_by_side import Lane, MakeRequest, endless_chat, run_for_steps, take_turns
from benchmarks.sweep_flags import numbers
from benchmarks.workbench import Workbench, add_workbench_flags, check_at_least, load_workbench
from benchmarks.workloads import distinct_openings, render_openings
from engine.config import acceptance_text
from engine.errors import ConfigError

BAR_STEPS = 50
SCENARIOS = ("seen", "synthetic")
# Requests of a phase have numbers, thus seeds, that no other phase has.
_NUMBERS_PER_PHASE = 100_000


@dataclass(frozen=True, slots=True)
class _Section:
    """What comes in one phase: requests, and at what rate dice accept, if they do."""

    name: str
    make_request: MakeRequest
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class _Scenario:
    """A drifting workload.

    Attributes:
        name: of `SCENARIOS`.
        loaded: who drafts.
        rounds: the sections of each round.
        longest: tokens of a prompt and its answer at most.
        num_seen: requests of a round's first section that come once before it begins.
    """

    name: str
    loaded: LoadedDrafter
    rounds: list[list[_Section]]
    longest: int
    num_seen: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    add_workbench_flags(parser, "drift", max_tokens=96)
    parser.add_argument(
        "--scenarios",
        default=",".join(SCENARIOS),
        metavar="NAME,NAME",
        help=f"of {', '.join(SCENARIOS)} (default: all)",
    )
    parser.add_argument(
        "--lookup", default="suffix", help="who drafts beside the model in `seen` (default: suffix)"
    )
    parser.add_argument(
        "--rates", default="0.9,0.1", metavar="HIGH,LOW", help="of `synthetic` (default: 0.9,0.1)"
    )
    for flag, default, meaning in (
        ("concurrency", 4, "requests in flight"),
        ("phase-steps", 300, "steps of auto in each phase"),
        ("rounds", 4, "times that engines start anew and see all phases; they are added up"),
        ("window", 16, "steps of a running mean"),
        ("draft-tokens", 4, "of the static lane"),
        ("copies", 8, "requests that come again and again in `seen`"),
    ):
        help_text = f"{meaning} (default: {default})"
        parser.add_argument(f"--{flag}", type=int, default=default, help=help_text)
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: a model cannot be loaded.
    """
    names, rates = _check(args)
    console = Console()
    bench = load_workbench(args, console)
    with console.status("loading drafts and prompts"):
        makers = {
            "seen": partial(_seen, bench, args),
            "synthetic": partial(_synthetic, bench, args, rates),
        }
        scenarios = [makers[name]() for name in names]
    results: dict[str, list[Phase]] = {}
    with show_progress(len(scenarios) * args.rounds) as on_progress:
        for index, scenario in enumerate(scenarios):
            on_progress(scenario.name, index * args.rounds)
            results[scenario.name] = _measure(scenario, args, on_progress, index)
    lanes = (str(args.draft_tokens), "auto")
    for name, phases in results.items():
        console.print(_table(name, phases, args))
    content = {
        "settings": settings_of(args),
        "bar_steps": BAR_STEPS,
        "scenarios": {
            name: [phase_to_json(phase, lanes, args.window) for phase in phases]
            for name, phases in results.items()
        },
    }
    write_output(args, console, content, partial(_draw, results, lanes, args.window))
    return 0


def _check(args: argparse.Namespace) -> tuple[list[str], tuple[float, ...]]:
    names = [name.strip() for name in args.scenarios.split(",")]
    for name in names:
        if name not in SCENARIOS:
            raise ConfigError(f"scenarios: {name!r} is not one of {', '.join(SCENARIOS)}.")
    for name in ("concurrency", "rounds", "window", "draft_tokens", "copies"):
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    check_at_least("phase-steps", args.phase_steps, 2 * args.window)
    rates = numbers("rates", args.rates, float)
    if len(rates) != 2:
        raise ConfigError(f"rates: {args.rates!r} are not two, a high and a low one.")
    return names, rates


def _seen(bench: Workbench, args: argparse.Namespace) -> _Scenario:
    """Make requests that come again, and others that never do."""
    draft = f"{args.lookup},{bench.draft_model}"
    loaded = bench.load(Drafter(draft, f"{args.lookup}+draft"))
    prompts = _prompts(bench, args, num_more=args.rounds * args.copies)
    num_chats = len(prompts) - args.rounds * args.copies
    again, fresh = prompts[num_chats:], prompts[:num_chats]
    rounds = []
    for index in range(args.rounds):
        own = again[index * args.copies : (index + 1) * args.copies]
        start = index * num_chats // args.rounds
        copy = endless_chat(own, args.temperature, args.max_tokens, repeats=True)
        chat = endless_chat([*fresh[start:], *fresh[:start]], args.temperature, args.max_tokens)
        sections = [_Section("seen before", copy), _Section("new", chat)]
        rounds.append([*sections, sections[0]])
    return _Scenario("seen", loaded, rounds, _longest(bench, args, prompts), args.copies)


def _synthetic(bench: Workbench, args: argparse.Namespace, rates: Sequence[float]) -> _Scenario:
    """Make requests whose drafts dice accept, at a high rate, a low one and the high one again."""
    high, low = rates
    loaded = bench.load(Drafter(bench.draft_model, "draft"))
    config = loaded.config
    speculation = replace(config.speculation, synthetic_acceptance=acceptance_text([high]))
    loaded = replace(loaded, config=replace(config, speculation=speculation))
    prompts = _prompts(bench, args, num_more=0)
    chat = endless_chat(prompts, args.temperature, args.max_tokens)
    sections = [_Section(f"{rate:g} accepted", chat, rate) for rate in (high, low, high)]
    longest = _longest(bench, args, prompts)
    return _Scenario("synthetic", loaded, [sections] * args.rounds, longest)


def _prompts(bench: Workbench, args: argparse.Namespace, num_more: int) -> list[list[int]]:
    """Give more prompts than a phase answers, even where drafts are accepted, and some more."""
    num_tokens = args.phase_steps * args.concurrency * 6
    count = num_tokens // args.max_tokens + args.concurrency + num_more
    openings = distinct_openings(bench.data_dir, count)
    if len(openings) <= num_more:
        raise ConfigError(
            f"copies: {num_more} of them in all leave no new requests; there are {len(openings)}."
        )
    return render_openings(bench.tokenizer, openings)


def _longest(bench: Workbench, args: argparse.Namespace, prompts: Sequence[Sequence[int]]) -> int:
    longest: int = max(map(len, prompts)) + args.max_tokens * 3 // 2
    bench.check_fit(longest)
    return longest


def _measure(
    scenario: _Scenario, args: argparse.Namespace, on_progress: OnProgress, index: int
) -> list[Phase]:
    traces: list[list[Trace]] = []
    for number, sections in enumerate(scenario.rounds):
        lanes = [
            lane_for(scenario.loaded, k, concurrency=args.concurrency, longest=scenario.longest)
            for k in (0, args.draft_tokens, None)
        ]
        if scenario.num_seen:
            _show_once(lanes, sections[0].make_request, scenario.num_seen)
        traces.append(list(_run_sections(lanes, sections, args.phase_steps)))
        on_progress(scenario.name, index * args.rounds + number + 1)
        del lanes
        free_memory()
    names = [section.name for section in scenario.rounds[0]]
    return [
        Phase(name, list(own)) for name, own in zip(names, zip(*traces, strict=True), strict=True)
    ]


def _show_once(lanes: Sequence[Lane], make_request: MakeRequest, num_requests: int) -> None:
    def is_done() -> bool:
        return all(lane.is_done_with(num_requests - 1) for lane in lanes)

    take_turns(lanes, make_request, is_done)


def _run_sections(
    lanes: Sequence[Lane], sections: Sequence[_Section], num_steps: int
) -> Iterator[Trace]:
    off, auto = lanes[0], lanes[-1]
    for index, section in enumerate(sections, start=1):
        for lane in lanes:
            lane.finish(index * _NUMBERS_PER_PHASE)
            lane.count_anew()
            if section.rate is not None and lane is not off:
                lane.core.change_synthetic_acceptance([section.rate])
        run_for_steps(lanes, auto, num_steps, section.make_request)
        yield trace_of(lanes, auto)


def _draw(
    results: dict[str, list[Phase]], lanes: Sequence[str], width: int, stem: Path
) -> list[Path]:
    from benchmarks.drift_plot import write_plot

    return [
        write_plot(phases, lanes, width, stem.with_name(f"{stem.name}_{name}.png"))
        for name, phases in results.items()
    ]


def _table(name: str, phases: Sequence[Phase], args: argparse.Namespace) -> Table:
    static, width = str(args.draft_tokens), args.window
    title = f"{name}: speed over off, and steps until auto recovered; the bar is {BAR_STEPS}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for phase in phases:
        table.add_column(phase.name, justify="right")
    rows: list[tuple[str, list[Any]]] = [
        (f"auto, first {width} steps", [_times(p.speed("auto", (0, width))) for p in phases]),
        ("auto, last half", [_times(p.speed("auto", p.steady)) for p in phases]),
        ("auto expects, last half", [_times(p.expected(p.steady)) for p in phases]),
        (f"k={static}, last half", [_times(p.speed(static, p.steady)) for p in phases]),
        ("recovered after", [_steps(p.recovered_after(width)) for p in phases]),
        ("settled after", [_steps(p.settled_after(width)) for p in phases]),
    ]
    for drafter in sorted({name for phase in phases for name in phase.drafters}):
        row = [f"{phase.drafts(drafter, phase.steady):.2f}" for phase in phases]
        rows.append((f"{drafter}, drafts per pass", row))
    for label, cells in rows:
        table.add_row(label, *cells)
    return table


def _times(speed: float) -> str:
    return f"{speed:.2f}x"


def _steps(count: int | None) -> str:
    return "never" if count is None else str(count)


def main() -> int:
    """Run the program."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
