"""The fused sampler over the 8B's vocabulary, as a share of what a pass takes at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.device_times import Call
from benchmarks.gpu.kernel_times import each, note_bandwidth, time_copies
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, ours


@dataclass(frozen=True, slots=True)
class _Kind:
    """What rows ask for, and how far their logits spread: 1 is nearly flat, 3 is ordinary."""

    spread: float = 1.0
    has_noise: bool = True
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def has_filters(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


_KINDS = {
    "greedy": _Kind(has_noise=False),
    "at T=1": _Kind(),
    "with top-p, flat": _Kind(top_p=0.9),
    "with top-p": _Kind(top_p=0.9, spread=3.0),
    "with top-k": _Kind(top_k=50, spread=3.0),
    "with top-k and top-p": _Kind(top_k=50, top_p=0.9, spread=3.0),
    "with min-p": _Kind(min_p=0.05, spread=3.0),
}


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
    settings = _settings(workshop, rows, _KINDS[kind])

    def make() -> Call:
        logits = torch.randn(rows, sizes.vocab, device=workshop.device) * _KINDS[kind].spread
        return partial(sample, logits.to(workshop.dtype), settings)

    num_bytes = rows * sizes.vocab * workshop.dtype.itemsize
    name = f"gumbel_sample {kind}, {rows} rows"
    times = time_copies(workshop, make, num_bytes)
    note_bandwidth(workshop, notes, name, times, num_bytes)
    weights = sum(
        outputs * inputs * (1 if linear == "lm_head" else sizes.layers)
        for linear, (outputs, inputs) in sizes.linears.items()
    )
    step_s = weights * workshop.dtype.itemsize / workshop.ceilings.copy_bytes_per_s
    notes.add("- its time over that of reading the weights", times.seconds / step_s)


def _settings(workshop: Workshop, rows: int, kind: _Kind) -> Any:
    """Give every row a slot of its own."""
    device = workshop.device

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, device=device, dtype=dtype)

    return ours("kernels.gumbel_sample", "SampleRows")(
        vocab_size=workshop.sizes.vocab,
        has_noise=kind.has_noise,
        has_filters=kind.has_filters,
        slots=torch.arange(rows, device=device, dtype=torch.int32),
        offsets=column(0, torch.int32),
        num_tokens=torch.arange(rows, device=device) + 100,
        temperature=column(float(kind.has_noise), torch.float32),
        top_k=column(kind.top_k, torch.int32),
        top_p=column(kind.top_p, torch.float64),
        min_p=column(kind.min_p, torch.float32),
        seed=torch.arange(rows, device=device),
        choice=column(0, torch.int32),
    )
