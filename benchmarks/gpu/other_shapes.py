"""Other shapes than the 8B: a small dense model, and a large mixture of experts where it fits."""

from __future__ import annotations

import torch

from benchmarks.gpu.engines import Plan, in_turn, make_engine, steady_load
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, free_memory


def run_small(workshop: Workshop, notes: Notes) -> None:
    """Measure the small shape at batch 1 and 64."""
    _run_shape(workshop, notes, workshop.sizes.other_small, (1, workshop.sizes.batches[-1]))


def run_large(workshop: Workshop, notes: Notes) -> None:
    """Measure the large shape at batch 1, where the device has the memory."""
    shape, needed = workshop.sizes.other_large, workshop.sizes.large_bytes
    if workshop.device.type == "cuda":
        total = torch.cuda.get_device_properties(workshop.device).total_memory
        if total < needed:
            notes.detail("left_out", shape=shape, needed_bytes=needed, total_bytes=total)
            return
    workshop.drop_models()
    _run_shape(workshop, notes, shape, (1,))
    workshop.drop_models()


def _run_shape(
    workshop: Workshop, notes: Notes, shape: str, concurrencies: tuple[int, ...]
) -> None:
    plan = Plan(concurrency=max(concurrencies), longest=workshop.sizes.longest)
    core = make_engine(workshop, plan, shape)
    for concurrency in concurrencies:
        load = steady_load(workshop, core, concurrency)
        in_turn([load], workshop)
        notes.add(f"{shape}, {concurrency} at once", load.rate, "tokens/s", spread=load.spread)
        notes.detail("rates", shape=shape, concurrency=concurrency, rates=load.rates)
    del core, load
    free_memory()
