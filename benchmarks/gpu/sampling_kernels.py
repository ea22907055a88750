"""The fused sampler over the 8B's vocabulary, as a share of what a pass takes at least."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.device_times import Call
from benchmarks.gpu.kernel_times import each, note_bandwidth, time_copies
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, ours

# What rows ask for: noise, filters.
_KINDS = {"greedy": (False, False), "at T=1": (True, False), "with top-p": (True, True)}


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure it for few and for many rows, greedy and sampled."""
    cases: list[tuple[str, Callable[[], None]]] = [
        (f"{kind}, {rows} rows", partial(_sample, workshop, notes, kind, rows))
        for rows in workshop.sizes.sampled_rows
        for kind in _KINDS
    ]
    each(notes, cases)


def _sample(workshop: Workshop, notes: Notes, kind: str, rows: int) -> None:
    sample = ours("kernels.gumbel_sample", "gumbel_sample")
    sizes = workshop.sizes
    settings = _settings(workshop, rows, *_KINDS[kind])

    def make() -> Call:
        logits = torch.randn(rows, sizes.vocab, device=workshop.device)
        return partial(sample, logits, settings)

    num_bytes = rows * sizes.vocab * 4
    name = f"gumbel_sample {kind}, {rows} rows"
    times = time_copies(workshop, make, num_bytes)
    note_bandwidth(workshop, notes, name, times, num_bytes)
    weights = sum(
        outputs * inputs * (1 if linear == "lm_head" else sizes.layers)
        for linear, (outputs, inputs) in sizes.linears.items()
    )
    step_s = weights * workshop.dtype.itemsize / workshop.ceilings.copy_bytes_per_s
    notes.add("- its time over that of reading the weights", times.seconds / step_s)


def _settings(workshop: Workshop, rows: int, has_noise: bool, has_filters: bool) -> Any:
    """Give every row a slot of its own."""
    device = workshop.device

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, device=device, dtype=dtype)

    return ours("kernels.gumbel_sample", "SampleRows")(
        vocab_size=workshop.sizes.vocab,
        has_noise=has_noise,
        has_filters=has_filters,
        slots=torch.arange(rows, device=device, dtype=torch.int32),
        offsets=column(0, torch.int32),
        num_tokens=torch.arange(rows, device=device) + 100,
        temperature=column(float(has_noise), torch.float32),
        top_k=column(0, torch.int32),
        top_p=column(0.9 if has_filters else 1.0, torch.float64),
        min_p=column(0.0, torch.float32),
        seed=torch.arange(rows, device=device),
        choice=column(0, torch.int32),
    )
