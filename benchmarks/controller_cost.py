"""What the controller itself takes: of an `auto` step, and against a plain one; with a profile.

Timed are the plan of a step's drafts, what is learnt from the step, the gate's verdicts while
chains are drafted, and the margins that it judges by. The profile is taken afterwards, as it slows
down what it looks at. Margins are tensors: on a GPU their time is that of starting their kernels.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.drafters import Drafter, LoadedDrafter
from benchmarks.lanes import free_memory, lane_for
from benchmarks.method_timer import timed
from benchmarks.program import run_program, write_output
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded, settings_of
from benchmarks.side_by_side import Lane, MakeRequest, endless_chat, run_for_steps
from benchmarks.tables import table_by_load
from benchmarks.workbench import (
    add_load_flags,
    add_workbench_flags,
    check_at_least,
    load_workbench,
    loads_of,
)
from benchmarks.workloads import Workload, built_in_workload
from engine.sampling import logits_processors
from engine.speculative.controller import Controller
from engine.speculative.margin_gate import MarginGate

BAR = 0.02
BAR_CONCURRENCY = 32
PLACES = {
    "observe": (Controller, "observe"),
    "judge": (MarginGate, "judge"),
    "margins": (logits_processors, "margins"),
}
_CONTROLLER_FILES = "engine/speculative/"
_ROOT = Path(logits_processors.__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerCost:
    """What was measured at one load.

    Attributes:
        temperature: of all requests.
        concurrency: requests in flight.
        num_steps: steps of `auto`.
        step_ms: a step of `auto` on average.
        plain_step_ms: a step of `off` on average.
        parts_ms: of an `auto` step on average: plan, observe, judge, margins.
        profile: functions that took most time of their own, most first: of the whole `step`, and
            of the `controller` with what stands around it.
    """

    temperature: float
    concurrency: int
    num_steps: int
    step_ms: float
    plain_step_ms: float
    parts_ms: dict[str, float]
    profile: dict[str, list[dict[str, Any]]]

    @property
    def total_ms(self) -> float:
        """All parts together."""
        return sum(self.parts_ms.values())

    @property
    def share(self) -> float:
        """Of an `auto` step, the controller's part."""
        return self.total_ms / self.step_ms


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    add_workbench_flags(parser, "controller_cost", max_tokens=64)
    add_load_flags(parser, concurrency="1,8,32", temperatures="0,1")
    parser.add_argument("--warm-up-steps", type=int, default=100, help="default: 100")
    parser.add_argument("--steps", type=int, default=500, help="timed (default: 500)")
    parser.add_argument("--profile-steps", type=int, default=200, help="default: 200")
    parser.add_argument("--top", type=int, default=25, help="functions listed (default: 25)")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: a model cannot be loaded.
    """
    loads, console = loads_of(args), Console()
    check_at_least("warm-up-steps", args.warm_up_steps, 0)
    for name in ("steps", "profile_steps", "top"):
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    bench = load_workbench(args, console)
    loaded = bench.load(Drafter(bench.config.speculation.draft or bench.draft_model, "draft"))
    workload = built_in_workload("chat", bench.tokenizer, bench.data_dir)
    bench.check_fit(workload.longest_prompt + args.max_tokens * 3 // 2)
    rows = []
    with show_progress(len(loads)) as on_progress:
        for index, (temperature, concurrency) in enumerate(loads):
            point = _Point(args, loaded, workload, temperature, concurrency)
            rows.append(point.measure(partial(_tell, on_progress, point.name, index)))
            free_memory()
    console.print(_table(rows))
    for row in rows:
        if row.concurrency == max(row.concurrency for row in rows):
            console.print(_profile_table(row))
    content = {
        "settings": settings_of(args),
        "bar": BAR,
        "workload": workload.source,
        "rows": [_to_json(row) for row in rows],
    }
    write_output(args, console, content)
    return 0


@dataclass(frozen=True, slots=True)
class _Point:
    args: argparse.Namespace
    loaded: LoadedDrafter
    workload: Workload
    temperature: float
    concurrency: int

    @property
    def name(self) -> str:
        return f"T={self.temperature:g}, {self.concurrency} at once"

    def measure(self, tell: Callable[[float], None]) -> ControllerCost:
        args = self.args
        longest = self.workload.longest_prompt + args.max_tokens * 3 // 2
        off, auto = lanes = [
            lane_for(self.loaded, k, concurrency=self.concurrency, longest=longest)
            for k in (0, None)
        ]
        make_request = endless_chat(self.workload.prompts, self.temperature, args.max_tokens)
        run_for_steps(lanes, auto, args.warm_up_steps, make_request)
        for lane in lanes:
            lane.count_anew()
        with timed(PLACES) as seconds:
            run_for_steps(
                lanes, auto, args.steps, make_request, lambda: tell(auto.num_steps / args.steps)
            )
        parts = {"plan": auto.controller_seconds, **seconds}
        step_ms, num_steps = 1000 * auto.seconds / auto.num_steps, auto.num_steps
        profile = _profile(auto, make_request, args.profile_steps, args.top)
        for lane in lanes:
            lane.finish()
        return ControllerCost(
            temperature=self.temperature,
            concurrency=self.concurrency,
            num_steps=num_steps,
            step_ms=step_ms,
            plain_step_ms=1000 * off.seconds / off.num_steps,
            parts_ms={name: 1000 * spent / num_steps for name, spent in parts.items()},
            profile=profile,
        )


def _tell(on_progress: OnProgress, point: str, num_done: int, share: float) -> None:
    on_progress(point, num_done + share)


def _profile(
    lane: Lane, make_request: MakeRequest, num_steps: int, top: int
) -> dict[str, list[dict[str, Any]]]:
    """List the functions whose own time was longest: of the step, and of the controller's files."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(num_steps):
        lane.step(make_request)
    profile.disable()
    # What pstats itself prints from; its stubs do not know it.
    stats: dict[tuple[str, int, str], Any] = vars(pstats.Stats(profile))["stats"]
    total = sum(own for _, _, own, _, _ in stats.values())
    longest = [
        {
            "function": _function_name(*place),
            "calls_per_step": round(calls / num_steps, 2),
            "own_ms_per_step": round(1000 * own / num_steps, 4),
            "cumulative_ms_per_step": round(1000 * cumulative / num_steps, 4),
            "own_share": round(own / total, 4),
        }
        for place, (_, calls, own, cumulative, _) in sorted(
            stats.items(), key=lambda item: item[1][2], reverse=True
        )
    ]
    own = [entry for entry in longest if str(entry["function"]).startswith(_CONTROLLER_FILES)]
    return {"step": longest[:top], "controller": own[:top]}


def _function_name(file: str, line: int, function: str) -> str:
    """Name a function by its file beside the engine, or the last parts of another's."""
    if not line:
        return function
    path = Path(file)
    if path.is_relative_to(_ROOT):
        return f"{path.relative_to(_ROOT).as_posix()}:{line} {function}"
    return f"{'/'.join(path.parts[-3:])}:{line} {function}"


def _to_json(row: ControllerCost) -> dict[str, Any]:
    is_barred = row.concurrency == BAR_CONCURRENCY
    return {
        **rounded(asdict(row)),
        "total_ms": rounded(row.total_ms),
        "share_of_step": rounded(row.share),
        "share_of_plain_step": rounded(row.total_ms / row.plain_step_ms),
        "is_met": row.share < BAR if is_barred else None,
    }


def _table(rows: Sequence[ControllerCost]) -> Table:
    title = f"the controller, ms per step; the bar is {BAR:.0%} at {BAR_CONCURRENCY} at once"
    parts: dict[str, Callable[[ControllerCost], str]] = {
        name: partial(_part_cell, name=name) for name in rows[0].parts_ms
    }
    cells: dict[str, Callable[[ControllerCost], str]] = {
        **parts,
        "all of these": lambda row: f"{row.total_ms:.3f}",
        "auto's step": lambda row: f"{row.step_ms:.2f}",
        "share of it": lambda row: f"{row.share:.2%}",
        "plain step": lambda row: f"{row.plain_step_ms:.2f}",
        "share of that": lambda row: f"{row.total_ms / row.plain_step_ms:.2%}",
    }
    return table_by_load(title, rows, cells)


def _part_cell(row: ControllerCost, name: str) -> str:
    return f"{row.parts_ms[name]:.3f}"


def _profile_table(row: ControllerCost) -> Table:
    where = f"T={row.temperature:g}, {row.concurrency} at once"
    table = Table(
        title=f"profile of {_CONTROLLER_FILES}, {where}; slower than without", title_justify="left"
    )
    table.add_column("function")
    for name in ("calls/step", "own ms/step", "share"):
        table.add_column(name, justify="right")
    for entry in row.profile["controller"]:
        table.add_row(
            entry["function"],
            f"{entry['calls_per_step']:g}",
            f"{entry['own_ms_per_step']:.3f}",
            f"{entry['own_share']:.1%}",
        )
    return table


def main() -> int:
    """Run the program."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
