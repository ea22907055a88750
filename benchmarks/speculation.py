"""What speculation gives: drafters, numbers of drafts, load and temperature against plain decoding.

`outdraft bench speculation` and `python -m benchmarks.speculation` are this program; `--help` tells
the options. It prints tables, writes JSON and plots, and says in one sentence what to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.drafters import Drafter
from benchmarks.measured import measure
from benchmarks.recommendation import Recommendation, say
from benchmarks.report import results_folder, settings_of, write_results
from benchmarks.sweep import Measurement
from benchmarks.sweep_flags import SweepDefaults, add_sweep_flags, serve_command
from benchmarks.tables import tables_of
from engine.errors import OutdraftError

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
    measured = measure(args, console, _refuse)
    for table in tables_of(measured.measurements):
        console.print(table)
    sentence = say(measured.recommendation, serve_command(args), measured.draft)
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
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        line = "no plots: matplotlib is missing; `pip install 'outdraft[bench]'` brings it"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        return []
    return write_plots(measurements, stem)


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
