"""Weights of 8 bits in the panels of `packed_matrix.py`, and what is computed with them.

    weight[o, i] = scales[o] * q[o, i]                        -127 <= q <= 127
    step[r] = max_i |x[r, i]| / 32767
    y[r, o] = sum_i q[o, i] * round(x[r, i] / step[r]) * scales[o] * step[r] + bias[o]

Rows are rounded to 16 bits of their largest number, which is much finer than bfloat16: so
processors multiply integers, twice as many at once as numbers of float32, and int8 becomes int16 by
one instruction. Sums of 512 products are exact, and they are added up in float32 in one order, so
no row's result depends on how many rows are beside it, nor on threads.
"""

from __future__ import annotations

import torch

from kernels.packed_matrix import PackedMatrix, from_panels, in_panels

_LARGEST = 127
_STEP = 2


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to 8 bits of each output's largest number.

    Args:
        weight: [out_features, in_features], any floating type.

    Returns:
        [out_features, in_features] int8, and [out_features] float32: what one step is worth.
    """
    exact = weight.detach().float()
    scales = exact.abs().amax(dim=1) / _LARGEST
    steps = torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    return (exact / steps).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8), scales


def pack_int8(
    rounded: torch.Tensor, scales: torch.Tensor, *, is_paired: bool = False
) -> PackedMatrix:
    """Reorder a rounded weight.

    Args:
        rounded: [out_features, in_features] int8.
        scales: [out_features] float32.
        is_paired: outputs are two halves of one length.
    """
    outputs, depth = rounded.shape
    panels = in_panels(rounded, _STEP, is_paired)
    ordered = in_panels(scales[:, None], 1, is_paired).flatten()
    return PackedMatrix(panels, None, outputs, depth, is_paired, ordered)


def unpack_int8(matrix: PackedMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rounded weight and the scales that were reordered."""
    assert matrix.scales is not None, "a matrix of int8"
    rounded = from_panels(matrix.panels, matrix.outputs, matrix.depth)
    count, _, *lanes, _ = matrix.panels.shape
    scales = from_panels(matrix.scales.view(count, 1, *lanes, 1), matrix.outputs, 1)
    return rounded, scales.flatten()
