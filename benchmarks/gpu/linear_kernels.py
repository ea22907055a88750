"""Products of few rows with the 8B's weights: as they are served, beside the library's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu.device_times import Call
from benchmarks.gpu.kernel_times import each, time_copies
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, free_memory
from engine.model.linear import linear


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure both over all products of a pass, from one row to many."""
    cases: list[tuple[str, Callable[[], None]]] = [
        (f"{rows} rows", partial(_compare, workshop, notes, rows))
        for rows in workshop.sizes.linear_rows
    ]
    each(notes, cases)


def _compare(workshop: Workshop, notes: Notes, rows: int) -> None:
    """Note one pass: every layer's products, and the logits."""
    sizes = workshop.sizes
    ours_s = library_s = 0.0
    num_bytes = 0
    for name, (outputs, inputs) in sizes.linears.items():
        size = (outputs * inputs + rows * (outputs + inputs)) * workshop.dtype.itemsize
        seconds = []
        for function in (_served, F.linear):
            make = partial(_make, workshop, function, rows, outputs, inputs)
            seconds.append(time_copies(workshop, make, size).seconds)
            free_memory()
        calls = 1 if name == "lm_head" else sizes.layers
        ours_s += calls * seconds[0]
        library_s += calls * seconds[1]
        num_bytes += calls * size
        notes.detail(
            "linears", name=name, rows=rows, bytes=size, ours_us=seconds[0] * 1e6,
            library_us=seconds[1] * 1e6,
        )  # fmt: skip
    ceiling = workshop.ceilings.copy_bytes_per_s
    notes.add(f"linears of a pass, {rows} rows, over the library's", library_s / ours_s)
    notes.add("- ours, of copy bandwidth", num_bytes / ours_s / ceiling)
    notes.add("- the library's, of copy bandwidth", num_bytes / library_s / ceiling)


def _served(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return linear(x, weight, None)


def _make(workshop: Workshop, function: Any, rows: int, outputs: int, inputs: int) -> Call:
    weight: torch.Tensor = workshop.random(outputs, inputs)
    return partial(function, workshop.random(rows, inputs), weight)
