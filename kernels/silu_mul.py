"""The gate of a gated feed-forward layer: SwiGLU (Shazeer, 2002.05202, sec. 2).

    y = silu(gate) * up      silu(g) = g / (1 + exp(-g)), in float32, rounded before the product

Shapes: gate, up and y [..., F], all of one dtype. Halves of a fused projection are given as
`fused.chunk(2, dim=-1)`, which copies nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Gate what goes up.

    Args:
        gate: [..., size]; rows may lie apart, their numbers are dense.
        up: likewise.

    Returns:
        [..., size], contiguous.
    """
    if gate.is_cuda:
        from kernels.silu_mul_triton import silu_mul_triton

        return silu_mul_triton(gate, up)
    return silu_mul_reference(gate, up)


def silu_mul_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Do what `silu_mul` does in torch; also the path of the CPU."""
    return F.silu(gate) * up
