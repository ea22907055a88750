"""Prove and measure everything that needs a GPU: `python -m benchmarks.gpu`.

Stage 1 runs the tests that need one, stage 2 measures. Results are written after every part, to
`gpu_tests.json` and `gpu.json`; one that failed or never ended does not keep the others from being
measured. `--continue` goes on where a run with the same folder ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gpu.correctness import run_tests
from benchmarks.gpu.part import FAILED, Outcome
from benchmarks.gpu.parts import PARTS, chosen
from benchmarks.gpu.run_file import RunFile
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.sizes import REAL, TINY
from benchmarks.gpu.throughput_plot import draw_throughput
from benchmarks.gpu.verdict_table import verdict_table
from benchmarks.gpu.workshop import Workshop
from benchmarks.report import results_folder, settings_of

_TESTS, _MEASURES = "gpu_tests", "gpu"


def main(words: list[str] | None = None) -> int:
    """Run the program; returns 1 where something failed."""
    args = _parse(sys.argv[1:] if words is None else words)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: this machine has no CUDA device that torch can use.")
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    outcomes: list[Outcome] = []
    if args.stage in ("1", "all"):
        outcomes += _run_stage_1(args)
        console.print(verdict_table(outcomes, "tests that need a GPU"))
    if args.stage in ("2", "all"):
        outcomes += _run_stage_2(args, console)
    return int(any(outcome.status == FAILED for outcome in outcomes))


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"parts of stage 2: {', '.join(part.name for part in PARTS)}",
    )
    parser.add_argument("--stage", choices=("1", "2", "all"), default="all")
    parser.add_argument(
        "--only", default="", metavar="PART,PART", help="parts of stage 2 (default: all)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=results_folder(),
        metavar="DIR",
        help="where results go (default: $OUT where it is set, else benchmarks/results)",
    )
    parser.add_argument(
        "--budget", type=float, default=540, metavar="SECONDS", help="of a stage (default: 540)"
    )
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="goes_on",
        help="keep what the results file in the folder has, and run the other parts",
    )
    parser.add_argument("--tests", default="", metavar="PATH,PATH", help="of stage 1 alone")
    parser.add_argument(
        "--shape",
        choices=("real", "tiny"),
        default="real",
        help="tiny is for tests of this program; its numbers mean nothing",
    )
    args = parser.parse_args(words)
    try:
        chosen(_words(args.only))
    except ValueError as error:
        parser.error(str(error))
    return args


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _run_stage_1(args: argparse.Namespace) -> list[Outcome]:
    deadline = time.monotonic() + args.budget
    outcome = run_tests(args.out.resolve(), deadline, _words(args.tests))
    RunFile(_TESTS, args.out, settings_of(args), [outcome]).write()
    return [outcome]


def _run_stage_2(args: argparse.Namespace, console: Console) -> list[Outcome]:
    deadline = time.monotonic() + args.budget
    is_tiny = args.shape == "tiny"
    name = f"{_MEASURES}_tiny" if is_tiny else _MEASURES
    file = RunFile(name, args.out, settings_of(args))
    if args.goes_on and file.path.is_file():
        file.load()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    workshop = Workshop(device, TINY if is_tiny else REAL, dtype)

    def start_anew() -> None:
        rest = str(max(0.0, deadline - time.monotonic()))
        words = ["--stage", "2", "--only", args.only, "--out", str(args.out), "--budget", rest]
        words += ["--device", args.device, "--shape", args.shape, "--continue"]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *words])

    Runner(workshop, file, deadline, console, start_anew).run(chosen(_words(args.only)))
    title = "tiny shapes: these numbers mean nothing" if is_tiny else "measured"
    console.print(verdict_table(file.outcomes, title))
    for path in [file.path, *draw_throughput(file.outcomes, args.out / name)]:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    return file.outcomes


if __name__ == "__main__":
    sys.exit(main())
