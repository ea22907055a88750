"""What a useless draft costs: `auto` with random weights beside `off`, after the first 100 steps.

The draft has the shape and tokenizer of the settings' draft. `off` runs twice: how far the second
is from the first is what the measurement cannot tell apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks.drafters import Drafter, LoadedDrafter
from benchmarks.lanes import free_memory, lane_for
from benchmarks.program import run_program, write_output
from benchmarks.progress import show_progress
from benchmarks.random_draft import write_random_draft
from benchmarks.report import rounded, settings_of
from benchmarks.side_by_side import (
    Lane,
    MakeRequest,
    endless_chat,
    run_for_steps,
    speed_ups,
)
from benchmarks.tables import table_by_load
from benchmarks.workbench import (
    Workbench,
    add_load_flags,
    add_workbench_flags,
    check_at_least,
    load_workbench,
    loads_of,
)
from benchmarks.workloads import built_in_workload

BAR = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Uselessness:
    """What was measured at one load.

    Attributes:
        temperature: of all requests.
        concurrency: requests in flight.
        num_steps: steps of `auto` behind the warm-up.
        speed_up: of `auto` over `off`.
        speed_up_parts: the same, part by part.
        off_again: of the second `off` over the first.
        off_again_parts: the same, part by part.
        num_steps_with_drafts: of the steps, those that verified drafts.
        num_draft_tokens: that were verified.
        num_wasted_tokens: of these, in vain.
        draft_share: of the time, spent proposing.
        prompt_share: of the time, the part of this in steps that verified no drafts: above all
            what the draft computes of prompts.
        controller_share: of the time, spent on deciding.
    """

    temperature: float
    concurrency: int
    num_steps: int
    speed_up: float
    speed_up_parts: list[float]
    off_again: float
    off_again_parts: list[float]
    num_steps_with_drafts: int
    num_draft_tokens: int
    num_wasted_tokens: int
    draft_share: float
    prompt_share: float
    controller_share: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    add_workbench_flags(parser, "useless_draft", max_tokens=64)
    add_load_flags(parser, concurrency="1,8,32", temperatures="0,1")
    parser.add_argument("--warm-up-steps", type=int, default=100, help="default: 100")
    parser.add_argument("--steps", type=int, default=1000, help="measured (default: 1000)")
    parser.add_argument("--parts", type=int, default=5, help="for the spread (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: a model cannot be loaded.
    """
    loads, console = loads_of(args), Console()
    check_at_least("warm-up-steps", args.warm_up_steps, 0)
    check_at_least("parts", args.parts, 1)
    check_at_least("steps", args.steps, args.parts)
    bench = load_workbench(args, console)
    useless = _load_useless(bench)
    workload = built_in_workload("chat", bench.tokenizer, bench.data_dir)
    longest = workload.longest_prompt + args.max_tokens * 3 // 2
    bench.check_fit(longest)
    rows = []
    with show_progress(len(loads)) as on_progress:
        for index, (temperature, concurrency) in enumerate(loads):
            lanes = [
                lane_for(useless, k, concurrency=concurrency, longest=longest) for k in (0, 0, None)
            ]
            make_request = endless_chat(workload.prompts, temperature, args.max_tokens)
            name = f"T={temperature:g}, {concurrency} at once"
            tell = partial(_tell, on_progress, name, index)
            _run_lanes(lanes, make_request, (args.warm_up_steps, args.steps), tell)
            rows.append(_read(lanes, temperature, args.parts))
            del lanes
            free_memory()
    console.print(_table(rows))
    content = {
        "settings": settings_of(args),
        "bar": BAR,
        "workload": workload.source,
        "rows": [{**rounded(asdict(row)), "is_met": row.speed_up >= BAR} for row in rows],
    }
    write_output(args, console, content)
    return 0


def _load_useless(bench: Workbench) -> LoadedDrafter:
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_draft(bench.draft_model, folder)
        loaded = bench.load(Drafter(path, "random weights"))
    draft = loaded.models.draft
    assert draft is not None, "a folder is a draft model"
    # What its passes take is kept by name, and the folder has another one every time.
    named = replace(draft, name=f"random weights like {bench.draft_model}")
    return replace(loaded, models=replace(loaded.models, draft=named))


def _run_lanes(
    lanes: Sequence[Lane],
    make_request: MakeRequest,
    num_steps: tuple[int, int],
    tell: Callable[[float], None],
) -> None:
    """Run the steps of the warm-up and those that are measured, as `auto`, the last lane, goes."""
    warm_up, measured = num_steps
    auto = lanes[-1]
    run_for_steps(lanes, auto, warm_up, make_request)
    for lane in lanes:
        lane.count_anew()
    run_for_steps(lanes, auto, measured, make_request, lambda: tell(auto.num_steps / measured))
    for lane in lanes:
        lane.finish()


def _tell(
    on_progress: Callable[[str, float], None], point: str, num_done: int, share: float
) -> None:
    on_progress(point, num_done + share)


def _read(lanes: Sequence[Lane], temperature: float, num_parts: int) -> Uselessness:
    off, again, auto = lanes
    return Uselessness(
        temperature=temperature,
        concurrency=auto.concurrency,
        num_steps=auto.num_steps,
        speed_up=speed_ups(auto, off, num_parts=1)[0],
        speed_up_parts=speed_ups(auto, off, num_parts=num_parts),
        off_again=speed_ups(again, off, num_parts=1)[0],
        off_again_parts=speed_ups(again, off, num_parts=num_parts),
        num_steps_with_drafts=sum(bool(note.drafts) for note in auto.notes),
        num_draft_tokens=auto.speculation.num_draft_tokens,
        num_wasted_tokens=auto.speculation.num_wasted_tokens,
        draft_share=auto.draft_seconds / auto.seconds,
        prompt_share=_draftless_seconds(auto) / auto.seconds,
        controller_share=auto.controller_seconds / auto.seconds,
    )


def _draftless_seconds(lane: Lane) -> float:
    return sum(note.draft_seconds for note in lane.notes if not note.drafts)


def _table(rows: Sequence[Uselessness]) -> Table:
    title = f"a useless draft: speed over off (range of the parts); auto's bar is {BAR:.2f}x"
    cells: dict[str, Callable[[Uselessness], str]] = {
        "auto": lambda row: _ratio(row.speed_up, row.speed_up_parts),
        "off, once more": lambda row: _ratio(row.off_again, row.off_again_parts),
        "steps with drafts": lambda row: f"{row.num_steps_with_drafts}/{row.num_steps}",
        "drafts in vain": lambda row: f"{row.num_wasted_tokens}/{row.num_draft_tokens}",
        "time for drafting": lambda row: f"{row.draft_share:.2%}",
        "- without drafts": lambda row: f"{row.prompt_share:.2%}",
        "time for deciding": lambda row: f"{row.controller_share:.2%}",
        "bar is met": lambda row: "yes" if row.speed_up >= BAR else "no",
    }
    return table_by_load(title, rows, cells)


def _ratio(whole: float, parts: Sequence[float]) -> str:
    return f"{whole:.3f}x\n{min(parts):.3f}-{max(parts):.3f}"


def main() -> int:
    """Run the program."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
