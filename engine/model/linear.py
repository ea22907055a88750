"""Linear layers that read their weight at the memory's full speed when there are few rows.

On a CPU they multiply with reordered weights (`packed_weights.py`). On a GPU a decode pass has a
few rows, for which a library's matrix product leaves bandwidth unused; `kernels/skinny_linear.py`
does not. How many rows there are is known only when a pass runs, so the choice is inside an
operation that torch.compile does not look into. Elsewhere, and for more rows, it is torch's own
product. Knows no model and no role of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.library import Library
from torch.nn import functional

from engine.model.packed_weights import PackedWeight, can_pack, pack
from kernels.skinny_config import is_faster
from kernels.skinny_linear import skinny_linear

_DTYPES = (torch.bfloat16, torch.float16)
# Vector loads of the weight's rows need them to begin where such loads may.
_DEPTH_MULTIPLE = 16

_library = Library("outdraft_linear", "FRAGMENT")
_library.define("multiply(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if is_faster(rows.shape[0], *weight.shape):
        return skinny_linear(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])
    return functional.linear(x, weight, bias)


def _multiply_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_library.impl("multiply", _multiply, "CompositeExplicitAutograd")
torch.library.register_fake("outdraft_linear::multiply", _multiply_fake, lib=_library)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    packed: PackedWeight | None = None,
) -> torch.Tensor:
    """Compute what `torch.nn.functional.linear` computes.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features], or None.
        packed: the same weight, reordered for a CPU.

    Returns:
        [..., out_features].
    """
    if packed is not None and not torch.compiler.is_compiling():
        return packed.multiply(x, bias)
    if is_suited(weight):
        product: torch.Tensor = torch.ops.outdraft_linear.multiply(x, weight, bias)
        return product
    return functional.linear(x, weight, bias)


def is_suited(weight: torch.Tensor) -> bool:
    """Whether a weight can be read by the kernel for few rows."""
    return (
        weight.is_cuda
        and weight.dtype in _DTYPES
        and weight.shape[1] % _DEPTH_MULTIPLE == 0
        and weight.stride(1) == 1
    )


class FewRowsLinear(nn.Linear):
    """A linear layer that computes by `linear`.

    Attributes:
        packed: its weight, reordered for a CPU; None elsewhere.
    """

    packed: PackedWeight | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply; see `torch.nn.Linear`."""
        return linear(input, self.weight, self.bias, self.packed)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move or cast; what was reordered would not follow, so it goes."""
        self.packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own


def use_few_rows_linear(model: nn.Module, *, packs: bool) -> int:
    """Let the plain linear layers of a model that can compute by `linear`, in place.

    Args:
        model: whose layers.
        packs: whether weights are reordered for a CPU.

    Returns:
        How many do.
    """
    plain = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and (is_suited(module.weight) or (packs and can_pack(module.weight)))
    ]
    for module in plain:
        packed = pack(module.weight) if can_pack(module.weight) else None
        module.__class__ = FewRowsLinear
        assert isinstance(module, FewRowsLinear), "its class has just been set"
        module.packed = packed
    return len(plain)
