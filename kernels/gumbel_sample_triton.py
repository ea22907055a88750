"""The kernels of `kernels/gumbel_sample.py`, and the order in which they run.

Peaks (`gumbel_scores_triton.py`), limits of the filters (`gumbel_limits_triton.py` looks where they
lie, `gumbel_search_triton.py` finds them), then scores with noise above these limits
(`gumbel_noise_triton.py`), joined from the programs that share a row. Grids and buffers depend on
shapes and flags alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from kernels.gumbel_limits_triton import NUM_PIVOTS, gather_kernel, narrow_kernel
from kernels.gumbel_noise_triton import noise_kernel
from kernels.gumbel_scores_triton import merge_kernel, peak_kernel, rank_kernel
from kernels.gumbel_search_triton import limit_kernel
from kernels.sample_rows import SampledRows, SampleRows

_MOST_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Tiling:
    """How rows are cut; powers of two.

    Attributes:
        block: tokens that a program looks at together.
        splits: programs of one row: one of few numbers, since each is compiled on its own.
        max_programs: with more, rows are split no further than they must be.
        num_groups: a row's tokens form so many groups, whose largest bound top-k; `block` at most.
        capacity: scores near a row's limits that are searched without reading the row again.
        few: so many of them are searched faster; `capacity` at most.
        num_rounds: times that the surroundings of a top-p limit are narrowed.
        num_warps: of a program.
        sum_warps: of one that adds up mass, for which each lane has many sums.
        limit_warps: of the one program per row that searches its limits.
    """

    block: int = 1024
    splits: tuple[int, ...] = (8, 32, 128)
    max_programs: int = 2048
    num_groups: int = 1024
    capacity: int = 8192
    few: int = 4096
    num_rounds: int = 3
    num_warps: int = 4
    sum_warps: int = 8
    limit_warps: int = 16

    def num_splits(self, num_rows: int, vocab_size: int) -> int:
        """Programs per row."""
        num_blocks = triton.cdiv(vocab_size, self.block)
        # A program keeps one bit for each of its blocks.
        least = triton.next_power_of_2(triton.cdiv(num_blocks, _MOST_BLOCKS))
        few = [n for n in self.splits if n * num_rows <= self.max_programs]
        wanted = max(least, max(few, default=min(self.splits)))
        return int(min(triton.next_power_of_2(num_blocks), wanted))


def gumbel_sample_triton(
    logits: torch.Tensor,
    rows: SampleRows,
    *,
    with_logprobs: bool = False,
    with_margins: bool = False,
    tiling: Tiling | None = None,
) -> SampledRows:
    """Do what `gumbel_sample` does."""
    tiling = tiling or Tiling()
    num_rows, device = logits.shape[0], logits.device
    splits = tiling.num_splits(num_rows, rows.vocab_size)
    chunk = triton.cdiv(triton.cdiv(rows.vocab_size, splits), tiling.block) * tiling.block
    # Of scores without noise, and with it.
    best = torch.empty(2, num_rows, splits, dtype=torch.float32, device=device)
    second, index = torch.empty_like(best), torch.empty_like(best, dtype=torch.int32)
    raw_best, raw_sum = torch.empty_like(best[0]), torch.empty_like(best[0])
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    is_invalid = torch.empty(num_rows, dtype=torch.bool, device=device)
    ranks = torch.empty_like(token_ids) if with_logprobs else None
    logprobs = torch.empty(num_rows, device=device) if with_logprobs else None
    margins = torch.empty(num_rows, device=device) if with_margins else None
    sampled = SampledRows(token_ids, is_invalid, logprobs, ranks, margins)
    if num_rows == 0:
        return sampled

    grid = (num_rows, splits)
    source = {**_source(logits, rows), "SPLITS": splits}
    cut = {"CHUNK": chunk, "BLOCK": tiling.block}
    # Contraction would round penalties differently from one kernel to the next.
    launch = {"num_warps": tiling.num_warps, "enable_fp_fusion": False}
    has_filters = rows.has_noise and rows.has_filters
    limits = Limits.empty(num_rows, splits, tiling, device) if has_filters else None
    peak_kernel[grid](
        **source,
        **cut,
        best=best[0],
        second=second[0],
        index=index[0],
        raw_best=raw_best,
        raw_sum=raw_sum,
        group_best=None if limits is None else limits.group_best,
        num_near=None if limits is None else limits.num_near,
        NUM_GROUPS=tiling.num_groups,
        WITH_LOGPROBS=with_logprobs,
        **launch,
    )
    if limits is not None:
        limits.find(rows, best[0], source, cut, tiling)
    if rows.has_noise:
        noise_kernel[grid](
            **source,
            **cut,
            greedy_best=best[0],
            temperatures=rows.temperature,
            num_tokens=rows.num_tokens,
            seeds=rows.seed,
            choices=rows.choice,
            limits=None if limits is None else limits.limits,
            best=best[1],
            second=second[1],
            index=index[1],
            WITH_MARGINS=with_margins,
            **launch,
        )
    merge_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        rows.vocab_size,
        rows.slots,
        rows.temperature,
        best,
        second,
        index,
        raw_best,
        raw_sum,
        token_ids,
        is_invalid,
        ranks,
        logprobs,
        margins,
        num_rows,
        SPLITS=splits,
        HAS_NOISE=rows.has_noise,
        num_warps=1,
    )
    if with_logprobs:
        rank_kernel[grid](logits, logits.stride(0), rows.vocab_size, token_ids, ranks, **cut)
    return sampled


def _source(logits: torch.Tensor, rows: SampleRows) -> dict[str, Any]:
    """The arguments of every kernel that reads scores."""

    def stride(tensor: torch.Tensor | None) -> int:
        return 0 if tensor is None else tensor.stride(0)

    return {
        "logits": logits,
        "logits_stride": logits.stride(0),
        "vocab_size": rows.vocab_size,
        "slots": rows.slots,
        "offsets": rows.offsets,
        "bias_row": rows.bias_row,
        "biases": rows.biases,
        "bias_stride": stride(rows.biases),
        "mask_row": rows.mask_row,
        "bitmask": rows.bitmask,
        "mask_stride": stride(rows.bitmask),
        "penalty_row": rows.penalty_row,
        "repetition_excess": rows.repetition_excess,
        "presence": rows.presence,
        "frequency": rows.frequency,
        "in_prompt": rows.in_prompt,
        "prompt_stride": stride(rows.in_prompt),
        "output_counts": rows.output_counts,
        "counts_stride": stride(rows.output_counts),
        "draft_token_ids": rows.draft_token_ids,
        "draft_stride": stride(rows.draft_token_ids),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """What finding the limits of filters needs.

    Attributes:
        limits: [R] float32, scores below are dropped.
        group_best: [R, num_groups] float32, the largest score of each group before temperature.
        num_near: [R] int32, scores near the limits.
        near: [R, capacity] float32, these scores, in no order.
        brackets: [rounds + 1, R, 4] float32: low, high, whether it is narrow enough, nothing.
        pivot_mass: [rounds, R, splits, pivots + 1] float64: of all, and from each pivot on.
        mass: [2, R, splits] float64: of all that min-p keeps, and above the bracket.
    """

    limits: torch.Tensor
    group_best: torch.Tensor
    num_near: torch.Tensor
    near: torch.Tensor
    brackets: torch.Tensor
    pivot_mass: torch.Tensor
    mass: torch.Tensor

    @classmethod
    def empty(cls, num_rows: int, splits: int, tiling: Tiling, device: torch.device) -> Limits:
        def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        rounds = tiling.num_rounds
        return cls(
            limits=floats(num_rows),
            group_best=floats(num_rows, tiling.num_groups),
            num_near=floats(num_rows, dtype=torch.int32),
            near=floats(num_rows, tiling.capacity),
            brackets=floats(rounds + 1, num_rows, 4),
            pivot_mass=floats(rounds, num_rows, splits, NUM_PIVOTS + 1, dtype=torch.float64),
            mass=floats(2, num_rows, splits, dtype=torch.float64),
        )

    def find(
        self,
        rows: SampleRows,
        greedy_best: torch.Tensor,
        source: dict[str, Any],
        cut: dict[str, int],
        tiling: Tiling,
    ) -> None:
        """Fill `limits`; `peak_kernel` has run."""
        num_rows, splits = greedy_best.shape
        filters = {
            "greedy_best": greedy_best,
            "temperatures": rows.temperature,
            "top_ks": rows.top_k,
            "top_ps": rows.top_p,
        }
        bracket = {
            **cut,
            "brackets": self.brackets,
            "pivot_mass": self.pivot_mass,
            "min_ps": rows.min_p,
            "num_rows": num_rows,
            "CAPACITY": tiling.capacity,
            "num_warps": tiling.sum_warps,
            "enable_fp_fusion": False,
        }
        for number in range(tiling.num_rounds):
            narrow_kernel[(num_rows, splits)](
                **source,
                **filters,
                **bracket,
                group_best=self.group_best,
                NUM_GROUPS=tiling.num_groups,
                ROUND=number,
            )
        gather_kernel[(num_rows, splits)](
            **source,
            **filters,
            **bracket,
            num_near=self.num_near,
            near=self.near,
            mass=self.mass,
            ROUND=tiling.num_rounds,
        )
        limit_kernel[(num_rows,)](
            **source,
            **filters,
            min_ps=rows.min_p,
            num_rows=num_rows,
            num_near=self.num_near,
            near=self.near,
            mass=self.mass,
            limits=self.limits,
            CAPACITY=tiling.capacity,
            FEW=tiling.few,
            NUM_BLOCKS=triton.cdiv(rows.vocab_size, 4 * tiling.block),
            BLOCK=4 * tiling.block,
            num_warps=tiling.limit_warps,
            enable_fp_fusion=False,
        )
