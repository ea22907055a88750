"""The small operations of a layer: writing keys and values, norms, and the gated activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.device_times import Call
from benchmarks.gpu.kernel_times import each, note_bandwidth, time_copies
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, ours

_BLOCK_SIZE = 16
_EPS = 1e-5


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure each for a decode pass of few and of many rows, and for a prompt."""
    cases: list[tuple[str, Callable[[], None]]] = []
    for rows in (*workshop.sizes.sampled_rows, workshop.sizes.prompts[0]):
        for name, measure in (
            ("kv_cache_write", _kv_cache_write),
            ("rms_norm", _rms_norm),
            ("silu_mul", _silu_mul),
        ):
            full = f"{name}, {rows} rows"
            cases.append((full, partial(measure, workshop, notes, full, rows)))
    each(notes, cases)


def _kv_cache_write(workshop: Workshop, notes: Notes, name: str, rows: int) -> None:
    write = ours("kernels.kv_cache_write", "kv_cache_write")
    sizes = workshop.sizes
    blocks = -(-rows // _BLOCK_SIZE) + 1

    def make() -> Call:
        shape = (sizes.kv_heads, sizes.head_dim)
        fresh = [workshop.random(rows, *shape) for _ in range(2)]
        caches = [workshop.random(blocks, _BLOCK_SIZE, *shape) for _ in range(2)]
        slots = torch.randperm(rows, device=workshop.device) + _BLOCK_SIZE
        return partial(write, *fresh, *caches, slots)

    num_bytes = 4 * rows * sizes.kv_heads * sizes.head_dim * workshop.dtype.itemsize
    note_bandwidth(workshop, notes, name, time_copies(workshop, make, num_bytes), num_bytes)


def _rms_norm(workshop: Workshop, notes: Notes, name: str, rows: int) -> None:
    norm = ours("kernels.rms_norm", "rms_norm")
    hidden = workshop.sizes.hidden
    weight = workshop.random(hidden)

    def make() -> Call:
        return partial(norm, workshop.random(rows, hidden), weight, _EPS)

    num_bytes = 2 * rows * hidden * workshop.dtype.itemsize
    note_bandwidth(workshop, notes, name, time_copies(workshop, make, num_bytes), num_bytes)


def _silu_mul(workshop: Workshop, notes: Notes, name: str, rows: int) -> None:
    activate = ours("kernels.silu_mul", "silu_mul")
    width = workshop.sizes.intermediate

    def make() -> Call:
        return partial(activate, *workshop.random(rows, 2 * width).chunk(2, dim=-1))

    num_bytes = 3 * rows * width * workshop.dtype.itemsize
    note_bandwidth(workshop, notes, name, time_copies(workshop, make, num_bytes), num_bytes)
