"""Profile a few steps of steady decoding: `python -m benchmarks.gpu.profile`.

Prints the kernels that take longest and the longest times in which the device waits, and writes a
Chrome trace, compressed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.device_times import synchronize
from benchmarks.gpu.engines import Plan, SteadyLoad, make_engine
from benchmarks.gpu.sizes import REAL, TINY
from benchmarks.gpu.throughput import ACCEPTANCE
from benchmarks.gpu.trace import Trace, record
from benchmarks.gpu.workshop import Workshop
from benchmarks.report import results_folder
from engine.config import parse_speculation
from engine.request import SpeculationStats

MAX_TRACE_BYTES = 16 * 2**20


def main(words: list[str] | None = None) -> int:
    """Run the program."""
    args = _parse(sys.argv[1:] if words is None else words)
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    workshop = Workshop(device, TINY if args.shape == "tiny" else REAL, dtype)
    load = _make_load(workshop, args)
    load.warm_up(workshop.sizes.answer // 4)

    def run() -> None:
        for _ in range(args.steps):
            load.step(SpeculationStats())
        synchronize(device)

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu_profile.json.gz"
    trace = record(run, path, with_host=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if trace.work:
        _tell(console, trace, args.steps)
    else:
        console.print("the profiler saw no work on a device")
    size = path.stat().st_size
    if size > MAX_TRACE_BYTES:
        path.unlink()
        console.print(f"no trace: {size} bytes exceed {MAX_TRACE_BYTES}; lower --steps")
    else:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="default: 8")
    parser.add_argument("--concurrency", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--speculation", type=parse_speculation, default=0, help="off, auto or N (default: off)"
    )
    parser.add_argument("--out", type=Path, default=results_folder(), metavar="DIR")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--shape", choices=("real", "tiny"), default="real")
    return parser.parse_args(words)


def _make_load(workshop: Workshop, args: argparse.Namespace) -> SteadyLoad:
    sizes = workshop.sizes
    is_drafted = args.speculation != 0
    # Answers that outlast the profile: steady decoding has no prompts in it.
    answer = 8 * sizes.answer
    plan = Plan(
        concurrency=args.concurrency,
        longest=sizes.prompt + 2 * answer,
        draft=sizes.drafts[1] if is_drafted else None,
        num_drafts=args.speculation,
        acceptance=ACCEPTANCE if is_drafted else None,
    )
    core = make_engine(workshop, plan)
    return SteadyLoad(core, workshop.device, args.concurrency, sizes.prompt, answer)


def _tell(console: Console, trace: Trace, num_steps: int) -> None:
    span, busy = trace.span_us / num_steps, trace.busy_us / num_steps
    console.print(f"{span:.0f} us a step while profiled, {busy:.0f} us of it busy")
    kernels = Table("kernel", "us a step", "calls a step", title="what took longest")
    for name, us, calls in trace.kernels(25):
        kernels.add_row(name[:90], f"{us / num_steps:.1f}", f"{calls / num_steps:.1f}")
    gaps = Table("us", "what came then", title="longest waits")
    for us, name in trace.gaps(15):
        gaps.add_row(f"{us:.1f}", name[:90])
    console.print(kernels, gaps)


if __name__ == "__main__":
    sys.exit(main())
