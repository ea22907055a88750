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
from engine.speculative.step_costs import CostGrid, StepCosts, interpolate
from engine.version import __version__

logger = logging.getLogger(__name__)

_NUM_SEQS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Recording a graph takes longer than running it.
_NUM_SEQS_OF_LOOP = (1, 4, 16, 64, 256, 512)
_ROWS_PER_SEQ = (1, 2, 3, 5, 9)
_MIDDLE_ROWS = 3
_MANY_SEQS = 16
_CONTEXT_TOKENS = 96
_NUM_ROUNDS = 12
# Batches too large for it are left to extrapolation.
_BUDGET_S = 6.0
# Small models need less: somebody waits for the first start.
_BUDGET_PASSES = 300
_LEAST_BUDGET_S = 1.5
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
    time_draft = None if draft is None else partial(_time_chain_pass, draft)
    # Where all of a model is one call, no request is padded to another's length.
    pads_rows = target.loaded.native is None
    return Timing(partial(_time_pass, target), time_draft, pads_rows=pads_rows)


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
    if timing.budget_s is None:
        # Every other number and the largest come first: what lies between can be read off them.
        order = sorted(num_seqs, key=lambda n: num_seqs.index(n) % 2 and n != num_seqs[-1])
        lines = {n: [_line(timing, n, timed, rows) for timed in _choices(n, rows)] for n in order}
        best = _time_in_rounds(lines, _budget_s(timing.target), runs_all_twice=True)
    else:
        lines = {n: [_line(timing, n, rows, rows)] for n in num_seqs}
        best = _time_in_rounds(lines, timing.budget_s, runs_all_twice=False)
    found = {n: line.read(seconds, rows) for n, (line, seconds) in best.items()}
    return _costs(timing, rows, found)


@dataclass(frozen=True, slots=True)
class _Line:
    """The passes of one number of requests that are timed.

    Attributes:
        num_seqs: requests.
        rows: of each request, in the target's first passes, ascending; they start at 1.
        depths: rows of the longest request in its next passes, where all others have one.
        shapes: all passes; the last is the draft's, where there is one.
    """

    num_seqs: int
    rows: list[int]
    depths: list[int]
    shapes: list[_Shape]

    @property
    def num_rows(self) -> int:
        """Rows of all passes."""
        return sum(sum(num_rows) for _, num_rows in self.shapes)

    def read(self, seconds: list[float], rows: list[int]) -> _Seconds:
        """Sort out what the passes took, and read what was left out off its neighbours."""
        num_uniform, num_target = len(self.rows), len(self.rows) + len(self.depths)
        known, places = seconds[:num_uniform], self.rows
        uniform = [interpolate(places, known, r) for r in rows]
        if self.num_seqs > 1:
            # One request's rows are all there are; beside others its first costs what theirs do.
            known, places = [known[0], *seconds[num_uniform:num_target]], [1, *self.depths]
        lopsided = [interpolate(places, known, depth) for depth in _depths(rows)]
        return _Seconds(uniform, lopsided, seconds[num_target:])


@dataclass(frozen=True, slots=True)
class _Seconds:
    """What passes of one number of requests take; attributes as `StepCosts` has them."""

    uniform: list[float]
    lopsided: list[float]
    draft: list[float]


def _line(timing: Timing, num_seqs: int, timed: list[int], rows: list[int]) -> _Line:
    target, draft = timing.target, timing.draft
    depths = _depths(rows)[1:] if timing.pads_rows and num_seqs > 1 else []
    shapes = [
        *((target, [num_rows] * num_seqs) for num_rows in timed),
        *((target, [num_rows] + [1] * (num_seqs - 1)) for num_rows in depths),
        *([] if draft is None else [(draft, [1] * num_seqs)]),
    ]
    return _Line(num_seqs, timed, depths, shapes)


def _choices(num_seqs: int, rows: list[int]) -> list[list[int]]:
    """Give the rows per request to time, and fewer for where these take too long.

    Passes of many requests grow by their rows, so that some can be read off others.
    """
    if num_seqs < _MANY_SEQS or _MIDDLE_ROWS not in rows:
        return [rows]
    return [[r for r in rows if r <= _MIDDLE_ROWS or r == rows[-1]], [1, _MIDDLE_ROWS]]


def _depths(rows: list[int]) -> list[int]:
    """Give the rows of the longest request at which passes with it are told."""
    return [num_rows for num_rows in rows if num_rows in (1, _MIDDLE_ROWS, rows[-1])]


def _costs(timing: Timing, rows: list[int], lines: dict[int, _Seconds]) -> StepCosts:
    num_seqs, found = list(lines), lines.values()
    lopsided = CostGrid(num_seqs, _depths(rows), [line.lopsided for line in found])
    return StepCosts(
        CostGrid(num_seqs, rows, [line.uniform for line in found]),
        CostGrid(num_seqs, [1], [line.draft for line in found]) if timing.draft else None,
        lopsided if timing.pads_rows else None,
    )


def _budget_s(time_target: TimePass) -> float:
    """Give the seconds that timing may take, by the best of a few passes of one row."""
    shortest = min(time_target([1]) for _ in range(3))
    return min(_BUDGET_S, max(_LEAST_BUDGET_S, _BUDGET_PASSES * shortest))


def _time_in_rounds(
    lines: dict[int, list[_Line]], budget_s: float, *, runs_all_twice: bool
) -> dict[int, tuple[_Line, list[float]]]:
    """Time all shapes in turn, a few times over, and keep the best of each.

    In turn, because whatever else the machine does for a while must not hit one shape alone.

    Args:
        lines: by number of requests, the one to time first and what to take instead where it takes
            too long; in the order of their first turn, 1 at the front.
        budget_s: seconds that all may take.
        runs_all_twice: begin a line only where there is time to run everything once more, if its
            rows take as long as those of a smaller one: a first run also pays for memory that later
            ones find. Without, whatever can be begun is timed.

    Returns:
        The lines that the time allows, at least the first, and the seconds of their passes.
    """
    best: dict[int, tuple[_Line, list[float]]] = {}
    row_s: dict[int, float] = {}
    started = time.perf_counter()
    deadline = started + budget_s
    with Progress(transient=True) as progress:
        task = progress.add_task("timing steps", total=_NUM_ROUNDS * len(lines))
        for num_seqs, choices in lines.items():
            begun = time.perf_counter()
            spent = begun - started
            slowest = row_s[max(n for n in row_s if n < num_seqs)] if row_s else 0.0
            for line in choices:
                needed = 2 * (spent + slowest * line.num_rows) if runs_all_twice else spent
                if not best or needed <= budget_s:
                    best[num_seqs] = line, [time_pass(rows) for time_pass, rows in line.shapes]
                    row_s[num_seqs] = (time.perf_counter() - begun) / line.num_rows
                    break
            progress.advance(task)
        for _ in range(_NUM_ROUNDS - 1):
            for line, seconds in best.values():
                if time.perf_counter() > deadline:
                    return dict(sorted(best.items()))
                passes = [time_pass(rows) for time_pass, rows in line.shapes]
                seconds[:] = map(min, seconds, passes)
                progress.advance(task)
    return dict(sorted(best.items()))


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
        max_num_tokens=config.scheduler.step_tokens,
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


@torch.inference_mode()
def _time_chain_pass(runner: ModelRunner, num_rows: Sequence[int]) -> float:
    """Time a pass behind the first of a chain, of one row for each request."""
    passes = runner.chain_passes(list(_spans(runner, num_rows)), 1)
    if passes is None:
        return _time_pass(runner, num_rows)
    token_ids = torch.zeros(len(num_rows), dtype=torch.int64)
    started = time.perf_counter()
    passes.run(token_ids)
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
    names = [
        f"{m.name} {m.weight_bytes} {m.dtype} {len(m.layers)} native={m.native is not None}"
        for m in loaded
    ]
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
