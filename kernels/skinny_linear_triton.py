"""The kernels of `kernels/skinny_linear.py`.

A program streams `BLOCK_N` rows of the weight, or its part of their depth, past all rows of x. With
a split depth the parts go to a buffer of their own each, and a second kernel adds them in order:
no sum depends on which program came first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.launch import overlap_options
from kernels.skinny_config import SkinnyConfig, choose_config, padded_rows

_REDUCE_BLOCK = 256


def skinny_linear_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    config: SkinnyConfig | None = None,
) -> torch.Tensor:
    """Do what `skinny_linear` does."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    if weight.shape[1] != depth or weight.dtype != x.dtype:
        raise ValueError(
            f"x {list(x.shape)} of {x.dtype} does not fit a weight {list(weight.shape)} of "
            f"{weight.dtype}."
        )
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("The last dimension of x and weight must be dense.")
    if config is None:
        config = choose_config(num_rows, num_columns, depth)
    output = x.new_empty(num_rows, num_columns)
    if num_rows == 0:
        return output
    if config.kind == "vector":
        _multiply_vector(x, weight, bias, output, config)
    else:
        _multiply_rows(x, weight, bias, output, config)
    return output


def _multiply_vector(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    config: SkinnyConfig,
) -> None:
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    if num_rows > 1 or config.split_k > 1:
        raise ValueError(f"{config} is for one row, not {num_rows}, and splits no depth.")
    vector_kernel[(triton.cdiv(num_columns, config.block_n),)](
        x,
        weight,
        bias,
        output,
        num_columns,
        depth,
        weight.stride(0),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        IS_EVEN=depth % config.block_k == 0,
        HAS_BIAS=bias is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **overlap_options(x),
    )


def _multiply_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    config: SkinnyConfig,
) -> None:
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    split, partials = config.split_k, output
    if split > 1:
        partials = x.new_empty(split, num_rows, num_columns, dtype=torch.float32)
    part = triton.cdiv(depth, split * config.block_k) * config.block_k
    dot_kernel[(triton.cdiv(num_columns, config.block_n), split)](
        x,
        weight,
        bias,
        partials,
        num_rows,
        num_columns,
        x.stride(0),
        weight.stride(0),
        DEPTH=depth,
        PART=part,
        ROWS=max(16, padded_rows(num_rows)),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        IS_EVEN=part * split == depth,
        HAS_BIAS=bias is not None and split == 1,
        STAGES=config.num_stages,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if split > 1:
        size = num_rows * num_columns
        reduce_kernel[(triton.cdiv(size, _REDUCE_BLOCK),)](
            partials,
            bias,
            output,
            size,
            num_columns,
            SPLIT=split,
            HAS_BIAS=bias is not None,
            BLOCK=_REDUCE_BLOCK,
            num_warps=2,
        )


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def dot_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    x_stride: tl.tensor,
    weight_stride: tl.tensor,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Grid: (blocks of columns, parts of the depth); a split output is [parts, M, N]."""
    part = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    place = part * PART + tl.arange(0, BLOCK_K)
    # Columns beyond the last read it again: cheaper than a mask on every load of the weight.
    safe_column = tl.minimum(column, num_columns - 1).to(tl.int64)
    weight_rows = weight + safe_column[:, None] * weight_stride + place[None, :]
    x_rows = x + row[:, None] * x_stride + place[None, :]
    is_row = row[:, None] < num_rows
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for step in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        if IS_EVEN:
            weights = tl.load(weight_rows + step)
            inputs = tl.load(x_rows + step, mask=is_row, other=0.0)
        else:
            in_depth = (place + step)[None, :] < DEPTH
            weights = tl.load(weight_rows + step, mask=in_depth, other=0.0)
            inputs = tl.load(x_rows + step, mask=is_row & in_depth, other=0.0)
        # Without a say in it, float32 would be rounded to tf32.
        total = tl.dot(inputs, weights.T, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + safe_column).to(tl.float32)[None, :]
    first_row = part.to(tl.int64) * num_rows
    result = output + (first_row + row)[:, None] * num_columns + column[None, :]
    is_inside = is_row & (column[None, :] < num_columns)
    tl.store(result, total.to(output.dtype.element_ty), mask=is_inside)


@triton.jit  # type: ignore[untyped-decorator]
def vector_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    num_columns: tl.tensor,
    depth: tl.tensor,
    weight_stride: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """Grid: (blocks of columns,); one row of x, and all of the depth is one part."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_K)
    safe_column = tl.minimum(column, num_columns - 1).to(tl.int64)
    weight_rows = weight + safe_column[:, None] * weight_stride + place[None, :]
    # Weights are nobody's output: the first of them may be on their way before x is written.
    if IS_EVEN:
        weights = tl.load(weight_rows)
    else:
        weights = tl.load(weight_rows, mask=(place < depth)[None, :], other=0.0)
    if OVERLAPS:
        gdc_wait()
        gdc_launch_dependents()
    inputs = tl.load(x + place, mask=place < depth, other=0.0)
    # Summed over the depth only at the end: until then threads need not talk.
    products = weights.to(tl.float32) * inputs.to(tl.float32)[None, :]
    for step in range(BLOCK_K, depth, BLOCK_K):
        if IS_EVEN:
            inputs = tl.load(x + place + step)
            weights = tl.load(weight_rows + step)
        else:
            in_depth = place + step < depth
            inputs = tl.load(x + place + step, mask=in_depth, other=0.0)
            weights = tl.load(weight_rows + step, mask=in_depth[None, :], other=0.0)
        products += weights.to(tl.float32) * inputs.to(tl.float32)[None, :]
    total = tl.sum(products, axis=1)
    if HAS_BIAS:
        total += tl.load(bias + safe_column).to(tl.float32)
    tl.store(output + column, total.to(output.dtype.element_ty), mask=column < num_columns)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def reduce_kernel(
    partials: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    size: tl.tensor,
    num_columns: tl.tensor,
    SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid: (blocks of results,); adds the parts of each result in order."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = index < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(partials + part * size + index, mask=is_inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + index % num_columns, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(output + index, total.to(output.dtype.element_ty), mask=is_inside)
