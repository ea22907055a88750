"""The kernel of `kernels/rms_norm.py`: a program per row, which it reads once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Bytes of registers allow no more per row; no model comes near it.
_MAX_SIZE = 32768


def rms_norm_triton(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    is_gemma: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `add_rms_norm` does, or without a residual what `rms_norm` does.

    Returns:
        The normalised rows, and the sums (`hidden` itself where there is no residual).

    Raises:
        ValueError: rows are too long, or residual or weight do not fit them.
    """
    size = hidden.shape[-1]
    if size > _MAX_SIZE:
        raise ValueError(f"Rows of {size} numbers are too long; at most {_MAX_SIZE}.")
    if weight.shape != (size,) or (residual is not None and residual.shape != hidden.shape):
        raise ValueError(f"Weight or residual do not fit rows of shape {list(hidden.shape)}.")
    rows = hidden.reshape(-1, size).contiguous()
    addends = rows if residual is None else residual.reshape(-1, size).contiguous()
    normed = torch.empty_like(rows)
    added = rows if residual is None else torch.empty_like(rows)
    block = triton.next_power_of_2(size)
    if len(rows):
        rms_norm_kernel[(len(rows),)](
            rows,
            addends,
            weight,
            normed,
            added,
            epsilon,
            SIZE=size,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            IS_GEMMA=is_gemma,
            num_warps=min(16, max(1, block // 512)),
        )
    return normed.view(hidden.shape), hidden if residual is None else added.view(hidden.shape)


@triton.jit  # type: ignore[untyped-decorator]
def rms_norm_kernel(
    hidden: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    added: tl.tensor,
    epsilon: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GEMMA: tl.constexpr,
) -> None:
    """Grid: (rows,)."""
    index = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * SIZE + index
    is_inside = index < SIZE
    dtype = normed.dtype.element_ty
    weights = tl.load(weight + index, mask=is_inside, other=0.0).to(tl.float32)
    values = tl.load(hidden + place, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + place, mask=is_inside, other=0.0).to(tl.float32)
        rounded = values.to(dtype)
        tl.store(added + place, rounded, mask=is_inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + epsilon)
    result = values * scale
    if IS_GEMMA:
        result *= 1.0 + weights
    else:
        result = result.to(dtype).to(tl.float32) * weights
    tl.store(normed + place, result.to(dtype), mask=is_inside)
