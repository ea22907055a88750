"""Times passes of a model at start-up, over numbers of requests and rows.

What it writes into the KV cache is garbage in blocks that nobody has yet. Results are kept on disk
by model, device and versions, so that only the first start takes the time.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata

import torch
from rich.progress import Progress

from engine.config import EngineConfig
from engine.kept_files import KeptFile
from engine.runner.decode_loop import DecodeLoop
from engine.runner.input_batch import Span
from engine.runner.model_runner import ModelRunner
from engine.speculative.step_costs import CostGrid, StepCosts
from engine.version import __version__

logger = logging.getLogger(__name__)

_NUM_SEQS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Recording a graph takes longer than running it.
_NUM_SEQS_OF_LOOP = (1, 4, 16, 64, 256, 512)
_ROWS_PER_SEQ = (1, 2, 3, 5, 9)
_CONTEXT_TOKENS = 96
_NUM_ROUNDS = 12
# Batches too large for it are left to extrapolation.
_BUDGET_S = 6.0
# Small models need less: somebody waits for the first start.
_BUDGET_PASSES = 500
_LEAST_BUDGET_S = 2.5
_BUDGET_OF_LOOP_S = 30.0

TimePass = Callable[[list[int]], float]
"""Runs one pass, of so many rows for each request, and gives its seconds."""

_Shape = tuple[TimePass, list[int]]


@dataclass(frozen=True, slots=True)
class Timing:
    """How passes are timed.

    Attributes:
        target: times passes of the model that verifies.
        draft: of the model that drafts; None = there is none.
        num_seqs: numbers of requests to time.
        pads_rows: whether requests of different lengths cost more than their rows.
        budget_s: seconds that it may take.
    """

    target: TimePass
    draft: TimePass | None
    num_seqs: Sequence[int] = _NUM_SEQS
    pads_rows: bool = True
    budget_s: float | None = None


def time_runners(target: ModelRunner, draft: ModelRunner | None) -> Timing:
    """Time passes that are waited for."""
    time_draft = None if draft is None else partial(_time_pass, draft)
    return Timing(partial(_time_pass, target), time_draft)


def time_loop(loop: DecodeLoop) -> Timing:
    """Time the passes of a loop, as they will run."""
    return Timing(
        loop.time_target,
        loop.time_draft if loop.has_draft else None,
        _NUM_SEQS_OF_LOOP,
        pads_rows=False,
        budget_s=_BUDGET_OF_LOOP_S,
    )


def measure_step_costs(timing: Timing, *, max_num_seqs: int, max_num_tokens: int) -> StepCosts:
    """Time the passes that decoding runs.

    Args:
        timing: runs them.
        max_num_seqs: requests that run at once at most.
        max_num_tokens: tokens of a pass at most.
    """
    num_seqs = [n for n in timing.num_seqs if n <= max(1, min(max_num_seqs, max_num_tokens))]
    rows = [r for r in _ROWS_PER_SEQ if r <= max(1, max_num_tokens // num_seqs[-1])]
    target, draft = timing.target, timing.draft
    lopsided = rows if timing.pads_rows else []
    lines = [
        [
            *((target, [num_rows] * count) for num_rows in rows),
            *((target, [num_rows] + [1] * (count - 1)) for num_rows in lopsided),
            *([] if draft is None else [(draft, [1] * count)]),
        ]
        for count in num_seqs
    ]
    if timing.budget_s is None:
        budget_s = _budget_s(timing.target)
        best = _time_in_rounds(lines, budget_s, runs_all_twice=True)
    else:
        best = _time_in_rounds(lines, timing.budget_s, runs_all_twice=False)
    num_seqs = num_seqs[: len(best)]
    width, end = len(rows), len(rows) + len(lopsided)
    return StepCosts(
        CostGrid(num_seqs, rows, [line[:width] for line in best]),
        None if draft is None else CostGrid(num_seqs, [1], [line[end:] for line in best]),
        CostGrid(num_seqs, rows, [line[width:end] for line in best]) if lopsided else None,
    )


def _budget_s(time_target: TimePass) -> float:
    """Give the seconds that timing may take, by the best of a few passes of one row."""
    shortest = min(time_target([1]) for _ in range(3))
    return min(_BUDGET_S, max(_LEAST_BUDGET_S, _BUDGET_PASSES * shortest))


def _time_in_rounds(
    lines: Sequence[Sequence[_Shape]], budget_s: float, *, runs_all_twice: bool
) -> list[list[float]]:
    """Time all shapes in turn, a few times over, and keep the best of each.

    In turn, because whatever else the machine does for a while must not hit one shape alone.

    Args:
        lines: shapes, those that take longest last.
        budget_s: seconds that all may take.
        runs_all_twice: begin a line only where there is time to run everything once more, if it
            takes twice as long as the one before: a first run also pays for memory that later ones
            find. Without, whatever can be begun is timed.

    Returns:
        Seconds of the first lines, as many as the time allows, at least one.
    """
    best: list[list[float]] = []
    started = time.perf_counter()
    deadline = started + budget_s
    with Progress(transient=True) as progress:
        task = progress.add_task("timing steps", total=_NUM_ROUNDS * len(lines))
        for line in lines:
            begun = time.perf_counter()
            best.append([time_pass(rows) for time_pass, rows in line])
            progress.advance(task)
            now = time.perf_counter()
            spent = now - started
            if budget_s < (2 * (spent + 2 * (now - begun)) if runs_all_twice else spent):
                break
        for _ in range(_NUM_ROUNDS - 1):
            for line, seconds in zip(lines, best, strict=False):
                if time.perf_counter() > deadline:
                    return best
                seconds[:] = map(min, seconds, [time_pass(rows) for time_pass, rows in line])
                progress.advance(task)
    return best


def load_or_measure(
    config: EngineConfig,
    target: ModelRunner,
    draft: ModelRunner | None,
    loop: DecodeLoop | None = None,
) -> StepCosts:
    """Give the costs as they were measured on this machine before, or measure them now."""
    kept = KeptFile("step-costs", _origin(config, target, draft))
    known = _read(kept)
    if known is not None:
        return known
    started = time.perf_counter()
    costs = measure_step_costs(
        time_runners(target, draft) if loop is None else time_loop(loop),
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_tokens=config.scheduler.max_num_batched_tokens,
    )
    grids = {"target": costs.target, "draft": costs.draft, "lopsided": costs.lopsided}
    kept.write({name: grid and grid.to_json() for name, grid in grids.items()})
    logger.info("steps_timed seconds=%.1f path=%s", time.perf_counter() - started, kept.path)
    return costs


def _time_pass(runner: ModelRunner, num_rows: Sequence[int]) -> float:
    spans = list(_spans(runner, num_rows))
    _wait_for(runner.loaded.device)
    started = time.perf_counter()
    runner.execute(spans)
    _wait_for(runner.loaded.device)
    return time.perf_counter() - started


def _spans(runner: ModelRunner, num_rows: Sequence[int]) -> Iterator[Span]:
    """Give requests in the middle of their answers; block 0 is scratch and stays out."""
    size, num_blocks = runner.storage.block_size, runner.storage.num_blocks
    start = max(0, min(_CONTEXT_TOKENS, runner.loaded.max_model_len - max(num_rows)))
    per_seq = -(-(start + max(num_rows)) // size)
    for index, count in enumerate(num_rows):
        first = index * per_seq
        block_ids = [1 + (first + place) % (num_blocks - 1) for place in range(per_seq)]
        yield Span([index % runner.loaded.vocab_size] * count, start, block_ids, count)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _origin(config: EngineConfig, target: ModelRunner, draft: ModelRunner | None) -> list[str]:
    device = target.loaded.device
    loaded = [runner.loaded for runner in (target, draft) if runner is not None]
    names = [f"{m.name} {m.weight_bytes} {m.dtype} {len(m.layers)}" for m in loaded]
    return [
        *names,
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        platform.node(),
        str(os.cpu_count()),
        str(torch.get_num_threads()),
        f"{config.scheduler} {config.cache.block_size} {config.runner}",
        f"{__version__} {torch.__version__} {metadata.version('transformers')}",
    ]


def _read(kept: KeptFile) -> StepCosts | None:
    content = kept.read()
    try:
        grids = {
            name: content[name] and CostGrid.from_json(content[name])
            for name in ("draft", "lopsided")
        }
        return StepCosts(CostGrid.from_json(content["target"]), **grids)
    except (KeyError, TypeError):
        return None
