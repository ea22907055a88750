"""Gated feed-forward layers with their gate as one kernel, where torch.compile does not fuse it.

    down_proj(silu(gate_proj(x)) * up_proj(x))

A layer is known by its projections' names, and is replaced only if its own forward gives the same.
"""

from __future__ import annotations

import inspect
import logging

import torch
from torch import nn

from kernels.silu_mul import silu_mul

logger = logging.getLogger(__name__)

_PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}
_NUM_ROWS = 3
_TOLERANCES = {torch.bfloat16: 2**-6, torch.float16: 2**-9}
_TOLERANCE = 1e-4
# What layers with other arguments or projections are known to raise.
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError)


class FusedGate:
    """Stands in for a gated layer's `forward`.

    Args:
        module: the layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._gate, self._up, self._down = (
            module.get_submodule(name) for name in ("gate_proj", "up_proj", "down_proj")
        )

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """Compute the layer: [..., hidden_size], the same shape and dtype back."""
        gate = self._gate(x)
        product: torch.Tensor = self._down(silu_mul(gate, self._up(x)))
        return product


@torch.inference_mode()
def fuse_gates(model: nn.Module) -> int:
    """Let the gated layers of a model that our kernel can serve be served by it, in place.

    Returns:
        How many are.
    """
    fused = 0
    for module in model.modules():
        if set(module._modules) >= _PROJECTIONS and _is_same(module):
            module.forward = FusedGate(module)
            fused += 1
    logger.info("fused_gates model=%s gates=%d", type(model).__name__, fused)
    return fused


def _is_same(module: nn.Module) -> bool:
    gate = module.get_submodule("gate_proj")
    weight = getattr(gate, "weight", None)
    if not (
        isinstance(gate, nn.Linear)
        and isinstance(weight, nn.Parameter)
        and "forward" not in vars(module)
        and len(inspect.signature(module.forward).parameters) == 1
    ):
        return False
    generator = torch.Generator(weight.device).manual_seed(0)
    shape = (_NUM_ROWS, weight.shape[1])
    rows = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
    try:
        expected, actual = module(rows), FusedGate(module)(rows)
    except _FAILURES:
        return False
    if not isinstance(expected, torch.Tensor) or expected.shape != actual.shape:
        return False
    # Sums may cancel, so what counts is the distance of whole rows.
    distance = (actual.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return float(distance.max()) <= _TOLERANCES.get(weight.dtype, _TOLERANCE)
