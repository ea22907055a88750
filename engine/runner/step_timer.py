"""Times passes of a model at start-up, over numbers of requests and rows.

What it writes into the KV cache is garbage in blocks that nobody has yet. Results are kept on disk
by model, device and versions, so that only the first start takes the time.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata

import torch
from rich.progress import Progress

from engine.config import EngineConfig
from engine.kept_files import KeptFile
from engine.runner.input_batch import Span
from engine.runner.model_runner import ModelRunner
from engine.speculative.step_costs import CostGrid, StepCosts
from engine.version import __version__

logger = logging.getLogger(__name__)

_NUM_SEQS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ROWS_PER_SEQ = (1, 2, 3, 5, 9)
_CONTEXT_TOKENS = 96
_NUM_ROUNDS = 12
# Beyond this, larger batches are left to extrapolation, and nothing is timed again.
_BUDGET_S = 6.0

_Shape = tuple[ModelRunner, list[int]]


def measure_step_costs(
    target: ModelRunner, draft: ModelRunner | None, *, max_num_seqs: int, max_num_tokens: int
) -> StepCosts:
    """Time the passes that decoding runs.

    Args:
        target: of the model whose passes verify.
        draft: of the model that drafts, if there is one.
        max_num_seqs: requests that run at once at most.
        max_num_tokens: tokens of a pass at most.
    """
    num_seqs = [n for n in _NUM_SEQS if n <= max(1, min(max_num_seqs, max_num_tokens))]
    rows = [r for r in _ROWS_PER_SEQ if r <= max(1, max_num_tokens // num_seqs[-1])]
    lines = [
        [
            *((target, [num_rows] * count) for num_rows in rows),
            *((target, [num_rows] + [1] * (count - 1)) for num_rows in rows),
            *([] if draft is None else [(draft, [1] * count)]),
        ]
        for count in num_seqs
    ]
    best = _time_in_rounds(lines)
    num_seqs = num_seqs[: len(best)]
    width = len(rows)
    return StepCosts(
        CostGrid(num_seqs, rows, [line[:width] for line in best]),
        None if draft is None else CostGrid(num_seqs, [1], [line[2 * width :] for line in best]),
        CostGrid(num_seqs, rows, [line[width : 2 * width] for line in best]),
    )


def _time_in_rounds(lines: Sequence[Sequence[_Shape]]) -> list[list[float]]:
    """Time all shapes in turn, a few times over, and keep the best of each.

    In turn, because whatever else the machine does for a while must not hit one shape alone.

    Args:
        lines: shapes, those that take longest last.

    Returns:
        Seconds of the first lines, as many as the time allows, at least one.
    """
    best: list[list[float]] = []
    deadline = time.perf_counter() + _BUDGET_S
    with Progress(transient=True) as progress:
        task = progress.add_task("timing steps", total=_NUM_ROUNDS * len(lines))
        for line in lines:
            best.append([_time_pass(*shape) for shape in line])
            progress.advance(task)
            if time.perf_counter() > deadline:
                break
        for _ in range(_NUM_ROUNDS - 1):
            for line, seconds in zip(lines, best, strict=False):
                if time.perf_counter() > deadline:
                    return best
                seconds[:] = map(min, seconds, [_time_pass(*shape) for shape in line])
                progress.advance(task)
    return best


def load_or_measure(
    config: EngineConfig, target: ModelRunner, draft: ModelRunner | None
) -> StepCosts:
    """Give the costs as they were measured on this machine before, or measure them now."""
    kept = KeptFile("step-costs", _origin(config, target, draft))
    known = _read(kept)
    if known is not None:
        return known
    started = time.perf_counter()
    costs = measure_step_costs(
        target,
        draft,
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
        f"{config.scheduler} {config.cache.block_size}",
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
