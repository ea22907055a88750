"""A linear layer for few rows: the weight is read once, at the speed of the memory.

    y[m, n] = sum_k x[m, k] * weight[n, k] + bias[n]

for at most 64 rows, as in decode and verify passes, where the weight's bytes are all that costs.
Sums are in float32, each in one fixed order for a given configuration: results are reproducible.
Shapes: x [M, K], weight [N, K], bias [N]; the result is [M, N].

`skinny_config.py` chooses how the weight is cut up.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kernels.skinny_config import SkinnyConfig


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: SkinnyConfig | None = None,
) -> torch.Tensor:
    """Multiply few rows with a weight.

    Args:
        x: [num_rows, depth], last dimension dense.
        weight: [num_columns, depth], x's dtype, last dimension dense.
        bias: [num_columns], added before the sum is rounded.
        config: how to; what `choose_config` gives if absent.

    Returns:
        [num_rows, num_columns], x's dtype.

    Raises:
        ValueError: on a GPU, more than `MAX_ROWS` rows, or shapes or strides that do not fit.
    """
    if x.is_cuda:
        from kernels.skinny_linear_triton import skinny_linear_triton

        return skinny_linear_triton(x, weight, bias, config)
    return F.linear(x, weight, bias)


def skinny_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Do what `skinny_linear` does in `dtype`, which is also the result's."""
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
