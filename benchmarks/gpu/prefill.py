"""Long prompts: how fast they are computed, and what others feel of it."""

from __future__ import annotations

import itertools
import statistics
import time

from benchmarks.gpu.device_times import synchronize
from benchmarks.gpu.engines import Plan, make_engine, random_prompt, submit
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, free_memory
from engine.core import EngineCore

_REPEATS = 3


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure prompts alone, then one behind requests that decode."""
    sizes = workshop.sizes
    longest = max(sizes.prompts)
    core = make_engine(
        workshop, Plan(concurrency=sizes.num_decodes + 1, longest=longest + sizes.answer)
    )
    # Embeddings are looked up, and logits are computed of the last token alone.
    weights = workshop.target.model.named_parameters()
    flops_per_token = 2 * sum(w.numel() for name, w in weights if ".layers." in name)
    for length in sizes.prompts:
        seconds = [
            _first_token(workshop, core, f"alone-{length}-{turn}", length)[0]
            for turn in range(_REPEATS + 1)
        ][1:]
        rates = [length / value for value in seconds]
        rate = statistics.median(rates)
        spread = min(rates), max(rates)
        notes.add(f"8B prompt of {length}", rate, "tokens/s", spread=spread)
        notes.add(
            f"8B prompt of {length}, of the matrix ceiling",
            rate * flops_per_token / workshop.ceilings.flops_per_s,
        )
    _run_mixed(workshop, notes, core, longest)
    del core
    free_memory()


def _run_mixed(workshop: Workshop, notes: Notes, core: EngineCore, length: int) -> None:
    """Put a long prompt behind requests that decode."""
    sizes = workshop.sizes
    ids = [
        submit(
            core,
            f"decode-{number}",
            random_prompt(sizes.prompt, core.info.vocab_size, number),
            length,
        )
        for number in range(sizes.num_decodes)
    ]
    for _ in range(8):
        core.step()
    calm = _gaps(core, 16)
    ttft, gaps = _first_token(workshop, core, "mixed", length)
    core.abort(ids)
    core.step()
    where = f"{sizes.num_decodes} decoding"
    notes.add(f"8B prompt of {length}, {where}: first token after", ttft * 1e3, "ms")
    notes.add(f"gap between tokens, {where}", statistics.median(calm) * 1e3, "ms")
    notes.add("the longest of them meanwhile", max(gaps) * 1e3, "ms")


def _gaps(core: EngineCore, num_steps: int) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(num_steps):
        core.step()
        marks.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(marks)]


def _first_token(
    workshop: Workshop, core: EngineCore, name: str, length: int
) -> tuple[float, list[float]]:
    """Give the seconds until a prompt's first token, and those of each step until then."""
    prompt = random_prompt(length, core.info.vocab_size, length)
    synchronize(workshop.device)
    started = time.perf_counter()
    request_id = submit(core, name, prompt, 1)
    gaps: list[float] = []
    while True:
        begin = time.perf_counter()
        deltas = core.step()
        gaps.append(time.perf_counter() - begin)
        if any(d.request_id == request_id and d.new_token_ids for d in deltas):
            return time.perf_counter() - started, gaps
