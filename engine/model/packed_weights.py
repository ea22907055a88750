"""Weights of linear layers as a CPU's matrix kernels want them: reordered once, at load.

A few rows then take what reading the weight takes, where the product of a plain one takes many
times as long. Our own order and functions (`kernels/packed_matrix.py`) need a C compiler; without
one it is oneDNN's. The plain weight stays for whoever reads it. As a rule it is mapped from its
file, so the reordered copy is all that takes memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from engine.model.int8_weights import Int8Weight
from kernels import packed_matrix
from kernels.packed_matrix import PackedMatrix, multiply_packed, pack_matrix

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16)
# The layout hardly depends on it, as long as it is more than one.
_EXPECTED_ROWS = 16
# Reordered weights leave so much of the free memory to everything else.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A reordered weight.

    Attributes:
        order: ours, or oneDNN's own.
    """

    order: PackedMatrix | torch.Tensor

    def __deepcopy__(self, _: Any) -> None:
        """Leave copies of models with their plain weights, which may be changed."""

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute x @ weight^T + bias.

        Args:
            x: [..., in_features], the weight's dtype.
            bias: [out_features], or None.

        Raises:
            RuntimeError: `x` is of another type or size than the weight.
        """
        if isinstance(self.order, PackedMatrix):
            product = multiply_packed(x, self.order)
            return product if bias is None else product.add_(bias)
        by_onednn: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.order, bias, "none", [], ""
        )
        return by_onednn


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this machine has kernels for reordered weights of this type."""
    return packed_matrix.can_pack(weight) or _can_pack_for_onednn(weight)


def pack(weight: torch.Tensor, *, is_paired: bool = False) -> PackedWeight:
    """Reorder a weight [out_features, in_features]; it is not changed.

    Args:
        weight: of a type for which `can_pack` is true.
        is_paired: see `kernels/packed_matrix.py`; products are the same.
    """
    if packed_matrix.can_pack(weight):
        return PackedWeight(pack_matrix(weight, is_paired=is_paired))
    return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _EXPECTED_ROWS))


def packed_matrix_of(module: nn.Module) -> PackedMatrix | None:
    """Return a linear layer's weight and bias in our own order, for all that it computes at once.

    Args:
        module: a layer; the first of a fused group stands for the group.
    """
    int8 = getattr(module, "int8", None)
    if isinstance(int8, Int8Weight):
        return int8.order
    packed = getattr(module, "packed", None)
    if not isinstance(packed, PackedWeight) or not isinstance(packed.order, PackedMatrix):
        return None
    bias = getattr(module, "fused_bias", None) if hasattr(module, "group") else module.bias
    assert bias is None or isinstance(bias, torch.Tensor), "a linear layer's bias"
    return packed.order if bias is None else packed.order.with_bias(bias.detach())


def has_memory_for(model: nn.Module) -> bool:
    """Whether reordered copies of a model's weights leave enough memory for everything else."""
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free = psutil.virtual_memory().available * _MEMORY_SHARE
    if needed > free:
        logger.warning(
            "packed_weights=no bytes=%d free=%d reason=passes of several rows will be slower",
            needed,
            free,
        )
    return bool(needed <= free)


def _can_pack_for_onednn(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in _DTYPES
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
