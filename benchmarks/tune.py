"""Chooses a draft for a model by measuring, and writes the configuration that serves it.

It measures what `outdraft bench speculation` does, over less load by default, and leaves out
candidates that cannot be loaded.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.drafters import Drafter
from benchmarks.lanes import lane_name
from benchmarks.measured import Measured, measure
from benchmarks.recommendation import mean_speed_ups
from benchmarks.report import machine_in_words
from benchmarks.sweep_flags import SweepDefaults, add_sweep_flags
from benchmarks.tables import tables_of
from engine.config import EngineConfig
from engine.config_files import DEMO, write_config_file
from engine.errors import ConfigError, OutdraftError
from engine.version import __version__

_DEFAULTS = SweepDefaults(draft_tokens="2,4", concurrency="1,4,16")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_sweep_flags(parser, _DEFAULTS)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the configuration (default: ./NAME.yaml after the model; must not exist yet)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, choose and write.

    Raises:
        ConfigError: a setting cannot be honoured, no candidate can be loaded, or the file cannot
            be written.
        InvalidRequestError: a prompt cannot be read.
        ModelLoadError: the model cannot be loaded.
    """
    path, console = _place(args), Console()
    failures: dict[str, str] = {}

    def leave_out(drafter: Drafter, error: OutdraftError) -> None:
        failures[drafter.name] = " ".join(str(error).split())
        line = f"left out: {drafter.name}: {failures[drafter.name]}"
        console.print(line, soft_wrap=True, highlight=False, markup=False, style="yellow")

    measured = measure(args, console, leave_out)
    for table in tables_of(measured.measurements):
        console.print(table)
    write_config_file(
        path,
        config_of(measured),
        tested_on=_tested_on(measured),
        notes=notes_of(measured, failures),
    )
    console.print(f"written: {path}", soft_wrap=True, highlight=False)
    command = shlex.join(["outdraft", "serve", "--config", str(path)])
    sentence = f"Run `{command}`: {_choice(measured)}."
    console.print(sentence, soft_wrap=True, highlight=False, markup=False, style="bold")
    return 0


def config_of(measured: Measured) -> EngineConfig:
    """Give the settings that serve what was chosen; local folders are absolute."""
    config, best = measured.config, measured.recommendation
    chosen = measured.chosen
    draft = None if chosen is None else chosen.config.speculation.draft
    speculation = replace(
        config.speculation,
        draft=None if draft is None else ",".join(map(_absolute, draft.split(","))),
        max_draft_tokens=best.draft_tokens,
    )
    assert config.model.model is not None, "resolve() names a model"
    model = replace(config.model, model=_absolute(config.model.model))
    return replace(config, model=model, speculation=speculation)


def notes_of(measured: Measured, failures: Mapping[str, str]) -> str:
    """Say how the choice was made, in numbers."""
    loads = sorted({m.concurrency for m in measured.measurements})
    temperatures = sorted({m.temperature for m in measured.measurements})
    sources = " and ".join(workload.source for workload in measured.workloads)
    means = mean_speed_ups(measured.measurements)
    told = ", ".join(f"{drafter} {mean:.2f}x" for drafter, mean in means.items())
    text = (
        f"Chosen by outdraft tune over {sources}, at {_list(loads)} requests at once and "
        f"temperature {_list(temperatures)}: {_choice(measured)}. "
        f"Geometric means of speed with auto over plain decoding: {told}."
    )
    if failures:
        text += f" Not measured, as they could not be loaded: {', '.join(failures)}."
    return text


def _choice(measured: Measured) -> str:
    best = measured.recommendation
    lane = best.measured[0]
    what = f"{lane.drafter} ({lane_name(lane.draft_tokens)}), {best.describe()}"
    return f"nobody gained 2 % on the whole; the best was {what}" if best.is_off else what


def _tested_on(measured: Measured) -> str:
    target = measured.target.target
    dtype = str(target.dtype).removeprefix("torch.")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{machine_in_words(target.device.type)}, {dtype}; outdraft {__version__}, {date}"


def _place(args: argparse.Namespace) -> Path:
    """Give the file to write, before anything is measured.

    Raises:
        ConfigError: the file exists.
    """
    model = getattr(args, "model", None) or args.config or DEMO
    name = Path(model).resolve().name if Path(model).exists() else model.rsplit("/", 1)[-1]
    path: Path = args.output or Path(f"{Path(name).name.removesuffix('.yaml').lower()}.yaml")
    if path.exists():
        raise ConfigError(f"output: {path} exists already; give another --output, or move it.")
    return path


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _list(values: list[int] | list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
