"""The command line of the training room: `python -m engine.training`.

Knows flags and defaults. Refuses to know what the stages do.
"""

import argparse
import logging
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler

from engine.training.budget import CPU_MINUTES, cpu_budget, gpu_budget
from engine.training.stages import STAGES, Pipeline, run_stages
from engine.training.workers import Workers, join_workers

LOG_FORMAT = "%(asctime)s %(name)s %(message)s"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces the process' own."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.training",
        description="Train, distil, evaluate and export the demo pair; resumes where it stopped.",
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}: all")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--output", type=Path, default=Path("model_configs/demo"))
    parser.add_argument("--work-dir", type=Path, default=Path("build/training"))
    parser.add_argument(
        "--max-minutes",
        type=float,
        help=f"wall clock for everything (CPU: {CPU_MINUTES:g}; accelerator: a token budget)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    unknown = [stage for stage in parsed.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; choose from {', '.join(STAGES)}")
    return parsed


def build_pipeline(parsed: argparse.Namespace, console: Console) -> Pipeline:
    """Turn parsed flags into a pipeline with the device's budget."""
    has_accelerator = torch.accelerator.is_available()
    found = torch.accelerator.current_accelerator() if has_accelerator else None
    device = torch.device(parsed.device) if parsed.device != "auto" else found
    device = device or torch.device("cpu")
    on_cpu = device.type == "cpu"
    if not on_cpu and device.index is None:
        device = torch.device(device.type, Workers().local_rank)
    return Pipeline(
        data_dir=parsed.data_dir,
        work_dir=parsed.work_dir,
        output=parsed.output,
        budget=cpu_budget(parsed.max_minutes or CPU_MINUTES)
        if on_cpu
        else gpu_budget(parsed.max_minutes),
        device=device,
        console=console,
        seed=parsed.seed,
    )


def main() -> None:
    """Run the chosen stages, or all of them, in order."""
    parsed = parse_arguments()
    join_workers()
    console = Console(quiet=not Workers().is_first)
    handler: logging.Handler = (
        RichHandler(console=console, show_path=False)
        if console.is_terminal
        else logging.StreamHandler()
    )
    level = logging.INFO if Workers().is_first else logging.WARNING
    logging.basicConfig(level=level, format=LOG_FORMAT, handlers=[handler])
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    pipeline = build_pipeline(parsed, console)
    run_stages(pipeline, parsed.stages)


if __name__ == "__main__":
    main()
