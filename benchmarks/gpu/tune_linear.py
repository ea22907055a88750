"""Time every way to cut up a weight: `python -m benchmarks.gpu.tune_linear`.

For each product of the 8B shape and each class of rows it prints the fastest configurations beside
the library's product. What wins belongs into `MEASURED` of `kernels/skinny_config.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from benchmarks.gpu.kernel_times import time_copies
from benchmarks.gpu.sizes import REAL
from benchmarks.gpu.workshop import Workshop, free_memory
from kernels.launch import Overlap
from kernels.skinny_config import SkinnyConfig, candidates
from kernels.skinny_linear import skinny_linear

_NUM_SHOWN = 3


def main(words: list[str] | None = None) -> int:
    """Run the program."""
    args = _parse(sys.argv[1:] if words is None else words)
    if not torch.cuda.is_available():
        raise SystemExit("tune_linear: this machine has no CUDA device that torch can use.")
    Overlap.is_wanted = args.overlap_kernels
    workshop = Workshop(torch.device("cuda"), REAL)
    table = Table("product", "rows", "library, us", "fastest, us")
    cases = [(item, rows) for item in REAL.linears.items() for rows in args.rows]
    for (name, (outputs, inputs)), rows in track(cases, description="timing"):
        make = partial(_make, workshop, rows, outputs, inputs)
        size = outputs * inputs * workshop.dtype.itemsize
        library = time_copies(workshop, partial(make, F.linear), size).seconds
        found = _time_candidates(workshop, make, rows, size)
        shown = "\n".join(f"{1e6 * s:.1f} {config}" for s, config in found[:_NUM_SHOWN])
        table.add_row(f"{name} {outputs}x{inputs}", str(rows), f"{1e6 * library:.1f}", shown)
        free_memory()
    Console(width=140).print(table)
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 16, 32, 64], help="default: 1 16 32 64"
    )
    parser.add_argument("--overlap-kernels", action="store_true", help="let kernels overlap")
    return parser.parse_args(words)


def _make(
    workshop: Workshop, rows: int, outputs: int, inputs: int, function: Callable[..., Any]
) -> Callable[[], Any]:
    weight = workshop.random(outputs, inputs)
    return partial(function, workshop.random(rows, inputs), weight)


def _time_candidates(
    workshop: Workshop, make: Callable[..., Any], rows: int, size: int
) -> list[tuple[float, SkinnyConfig]]:
    """Time all configurations for so many rows, the fastest first."""
    found: list[tuple[float, SkinnyConfig]] = []
    for config in candidates(rows):
        function = partial(skinny_linear, config=config)
        seconds = time_copies(workshop, partial(make, function), size).seconds
        found.append((seconds, config))
    return sorted(found, key=lambda pair: pair[0])


if __name__ == "__main__":
    sys.exit(main())
