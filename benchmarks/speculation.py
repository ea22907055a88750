"""What speculation gives: drafters, numbers of drafts, load and temperature against plain decoding.

`outdraft bench speculation` and `python -m benchmarks.speculation` are this program; `--help` tells
the options. It prints tables, writes JSON and plots, and says in one sentence what to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.drafters import Drafter
from benchmarks.measured import measure
from benchmarks.program import add_output_flags, run_program, write_output
from benchmarks.recommendation import Recommendation, say
from benchmarks.report import settings_of
from benchmarks.sweep import Measurement
from benchmarks.sweep_flags import SweepDefaults, add_sweep_flags, serve_command
from benchmarks.tables import tables_of
from engine.errors import OutdraftError

_DEFAULTS = SweepDefaults(draft_tokens="1,2,4,8", concurrency="1,2,4,8,16,32")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_sweep_flags(parser, _DEFAULTS)
    add_output_flags(parser, "speculation")


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
    content = {
        "settings": settings_of(args),
        "workloads": {workload.name: workload.source for workload in measured.workloads},
        "rows": [m.to_json() for m in measured.measurements],
        "recommendation": {"sentence": sentence, **_choice(measured.recommendation)},
    }
    write_output(args, console, content, partial(_draw, measured.measurements))
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


def _draw(measurements: Sequence[Measurement], stem: Path) -> list[Path]:
    from benchmarks.plots import write_plots

    return write_plots(measurements, stem)


def main() -> int:
    """Run the benchmark as a program of its own."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
