"""What speculation gives: drafters, numbers of drafts, load and temperature against plain decoding.

`outdraft bench speculation` and `python -m benchmarks.speculation` are this program; `--help` tells
the options. It prints tables, writes JSON and plots, and says in one sentence what to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.drafters import Drafter, LoadedDrafter, load_drafters, parse_drafters
from benchmarks.recommendation import Recommendation, recommend, say
from benchmarks.report import results_folder, settings_of, write_results
from benchmarks.sweep import Measurement, OnProgress, Sweep, check_fit, num_points, run_sweep
from benchmarks.sweep_flags import (
    SweepDefaults,
    add_sweep_flags,
    asked_config,
    sweep_from_args,
    workloads_from_args,
)
from benchmarks.tables import tables_of
from benchmarks.workloads import Workload
from engine.config_files import resolve
from engine.errors import OutdraftError
from engine.model_pair import load_target

_DEFAULTS = SweepDefaults(draft_tokens="1,2,4,8", concurrency="1,2,4,8,16,32")
_FOLDER = Path("bench-results")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_sweep_flags(parser, _DEFAULTS)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where JSON and plots go (default: $OUT where it is set, else ./{_FOLDER})",
    )
    parser.add_argument("--name", default="speculation", help="their name (default: speculation)")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        InvalidRequestError: a prompt cannot be read.
        ModelLoadError: a model cannot be loaded.
    """
    console = Console()
    measured = measure(args, sweep_from_args(args), console, _refuse)
    for table in tables_of(measured.measurements):
        console.print(table)
    sentence = measured.sentence()
    folder = results_folder(_FOLDER) if args.output is None else args.output
    content = {
        "settings": settings_of(args),
        "workloads": {workload.name: workload.source for workload in measured.workloads},
        "rows": [m.to_json() for m in measured.measurements],
        "recommendation": {"sentence": sentence, **_choice(measured.recommendation)},
    }
    written = [write_results(args.name, content, folder)]
    written += _plots(console, measured.measurements, folder / args.name)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    console.print(sentence, soft_wrap=True, highlight=False, markup=False, style="bold")
    return 0


@dataclass(frozen=True, slots=True)
class Measured:
    """A sweep that was run.

    Attributes:
        model: the target as the user named it; None = the demo pair.
        workloads: the prompts.
        drafters: who was measured.
        measurements: every lane of every point.
        recommendation: what to run.
    """

    model: str | None
    workloads: list[Workload]
    drafters: list[LoadedDrafter]
    measurements: list[Measurement]
    recommendation: Recommendation

    @property
    def chosen(self) -> LoadedDrafter | None:
        """The drafter to run; None = nobody."""
        name = self.recommendation.drafter
        return next((d for d in self.drafters if d.drafter.name == name), None)

    def sentence(self) -> str:
        """Say what to run."""
        draft = None if self.chosen is None else self.chosen.drafter.draft
        return say(self.recommendation, self.model, draft)


def measure(args: argparse.Namespace, sweep: Sweep, console: Console, on_failure: Any) -> Measured:
    """Load the models and run a sweep.

    Args:
        args: of the command line, with the flags of `add_sweep_flags`.
        sweep: what is measured.
        console: where progress is shown.
        on_failure: is told of a drafter that cannot be loaded.

    Raises:
        ConfigError: a setting cannot be honoured, or no drafter is left.
        InvalidRequestError: a prompt cannot be read.
        ModelLoadError: a model cannot be loaded.
    """
    asked = asked_config(args)
    config = resolve(asked)
    drafters = parse_drafters(args.drafts, config)
    with console.status("loading the models"):
        target = load_target(config)
        workloads = workloads_from_args(args, config, target)
        limits = (config.model.max_model_len, target.target.max_model_len)
        check_fit(sweep, workloads, min(limit for limit in limits if limit is not None))
        loaded = load_drafters(drafters, config, target, on_failure)
    total = num_points(sweep, len(loaded), len(workloads))
    with _progress(total) as on_progress:
        points = run_sweep(sweep, loaded, workloads, on_progress)
        measurements = [m for point in points for m in point]
    model = asked.model.model
    return Measured(model, workloads, loaded, measurements, recommend(measurements))


def _refuse(drafter: Drafter, error: OutdraftError) -> None:
    raise type(error)(f"drafts: {drafter.name}: {error}") from error


def _choice(recommendation: Recommendation) -> dict[str, Any]:
    return {
        "drafter": recommendation.drafter,
        "draft_tokens": recommendation.draft_tokens,
        "mean_speed_up": round(recommendation.mean_speed_up, 4),
    }


def _plots(console: Console, measurements: Sequence[Measurement], stem: Path) -> list[Path]:
    try:
        from benchmarks.plots import write_plots
    except ModuleNotFoundError:
        console.print("no plots: matplotlib is missing; `pip install 'outdraft[bench]'` brings it")
        return []
    return write_plots(measurements, stem)


@contextmanager
def _progress(total: int) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f} of {task.total} points"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Drawing takes time from what is measured, though from all lanes alike.
    with Progress(*columns, console=console, refresh_per_second=1, transient=True) as bar:
        task = bar.add_task("measuring", total=total)

        def on_progress(point: str, done: float) -> None:
            bar.update(task, description=point, completed=done)

        yield on_progress


def main() -> int:
    """Run the benchmark as a program of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_flags(parser)
    try:
        return run(parser.parse_args())
    except OutdraftError as error:
        parser.exit(1, f"{type(error).__name__}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
