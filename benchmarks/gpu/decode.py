"""Plain decoding of one answer: how near it comes to reading the weights once per token."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device_times import synchronize
from benchmarks.gpu.engines import Plan, make_engine, random_prompt, submit
from benchmarks.gpu.kernel_times import size_of
from benchmarks.gpu.part import Notes
from benchmarks.gpu.trace import record
from benchmarks.gpu.workshop import Workshop, free_memory
from engine.core import EngineCore
from engine.model.loader import LoadedModel

ROOFLINE_BAR = 0.90
BUSY_BAR = 0.98
_PROFILED_STEPS = 20


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure batch 1 of the target against the roofline, and how busy the device is."""
    sizes = workshop.sizes
    bandwidth = workshop.ceilings.copy_bytes_per_s
    core = decoding_engine(workshop)
    _steps(core, sizes.decode_tokens // 8)
    rates = [_rate(workshop, core, sizes.decode_tokens // 4) for _ in range(3)]
    rate = sorted(rates)[1]
    spread = min(rates), max(rates)
    weight_bytes = bytes_per_token(workshop.target)
    share = weight_bytes / bandwidth
    notes.add("8B decode, batch 1", rate, "tokens/s", spread=spread)
    notes.add(
        "8B decode, batch 1, of the roofline",
        rate * share,
        bar=ROOFLINE_BAR,
        spread=(spread[0] * share, spread[1] * share),
    )
    _note_busy(workshop, notes, core, 1.0 / rate)
    if workshop.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(workshop.device)
        notes.add("memory at its peak", peak / 1e9, "GB")
        notes.add("weights", workshop.target.weight_bytes / 1e9, "GB")
    del core
    free_memory()


def decoding_engine(workshop: Workshop, target: str | None = None) -> EngineCore:
    """Make an engine that is in the middle of one long answer."""
    sizes = workshop.sizes
    num_tokens = 2 * sizes.decode_tokens
    plan = Plan(concurrency=1, longest=sizes.prompt + num_tokens)
    core = make_engine(workshop, plan, target)
    prompt = random_prompt(sizes.prompt, core.info.vocab_size, 0)
    submit(core, "decode", prompt, num_tokens)
    _steps(core, 2)
    return core


def bytes_per_token(loaded: LoadedModel) -> int:
    """Give the bytes of weights that a token has to read.

    Of an embedding that is no output layer as well, it reads one row.
    """
    model: Any = loaded.model
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_tied = output is not None and output.weight.data_ptr() == embedding.data_ptr()
    return loaded.weight_bytes - (0 if is_tied else size_of(embedding))


def _rate(workshop: Workshop, core: EngineCore, num_tokens: int) -> float:
    """Give tokens per second of so many tokens."""
    synchronize(workshop.device)
    started = time.perf_counter()
    written = _steps(core, num_tokens)
    synchronize(workshop.device)
    return written / (time.perf_counter() - started)


def _steps(core: EngineCore, num_tokens: int) -> int:
    written = 0
    while written < num_tokens:
        written += sum(len(delta.new_token_ids) for delta in core.step())
    return written


def _note_busy(workshop: Workshop, notes: Notes, core: EngineCore, step_s: float) -> None:
    """Note how long the device works in a step, over what a step takes where nobody profiles."""
    num_steps = min(_PROFILED_STEPS, workshop.sizes.decode_tokens // 8)

    def run_steps() -> None:
        _steps(core, num_steps)
        synchronize(workshop.device)

    with tempfile.TemporaryDirectory() as folder:
        trace = record(run_steps, Path(folder) / "trace.json")
    if not trace.work:
        return
    busy_us = trace.busy_us / num_steps
    notes.add("8B decode, batch 1, device busy", busy_us / (step_s * 1e6), bar=BUSY_BAR)
    notes.add("the same while profiled", trace.busy_us / trace.span_us)
    notes.add("kernels and copies per step", len(trace.work) / num_steps)
    for name, us, calls in trace.kernels(15):
        notes.detail("kernels", name=name, us_per_step=us / num_steps, calls=calls / num_steps)
    for us, name in trace.gaps(10):
        notes.detail("gaps", us=us, before=name)
