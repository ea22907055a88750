"""Weights of linear layers as a CPU's matrix kernels want them: reordered once, at load.

oneDNN multiplies a few rows with a reordered weight for the price of one, where the product of a
plain one is many times as slow. One row gains, too, unless its weights lie in the nearest cache.
The plain weight stays for whoever reads it. As a rule it is mapped from its file, so the reordered
copy is all that takes memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

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
        packed: in an order of oneDNN's own.
    """

    packed: torch.Tensor

    def __deepcopy__(self, _: Any) -> None:
        """Leave copies of models with their plain weights, which may be changed."""

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute x @ weight^T + bias.

        Args:
            x: [..., in_features], the weight's dtype.
            bias: [out_features], or None.
        """
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, bias, "none", [], ""
        )
        return product


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this machine has kernels for reordered weights of this type."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in _DTYPES
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack(weight: torch.Tensor) -> PackedWeight:
    """Reorder a weight [out_features, in_features]; it is not changed."""
    return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _EXPECTED_ROWS))


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
