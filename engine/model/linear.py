"""Linear layers that read their weight at the memory's full speed when there are few rows.

On a GPU a decode pass has a few rows, for which a library's matrix product leaves bandwidth unused;
`kernels/skinny_linear.py` does not. How many rows there are is known only when a pass runs, so the
choice is inside an operation that torch.compile does not look into. Elsewhere, and for more rows,
it is torch's own product. Knows no model and no role of a layer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.library import Library
from torch.nn import functional

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


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute what `torch.nn.functional.linear` computes.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features], or None.

    Returns:
        [..., out_features].
    """
    if not is_suited(weight):
        return functional.linear(x, weight, bias)
    product: torch.Tensor = torch.ops.outdraft_linear.multiply(x, weight, bias)
    return product


def is_suited(weight: torch.Tensor) -> bool:
    """Whether a weight can be read by the kernel for few rows."""
    return (
        weight.is_cuda
        and weight.dtype in _DTYPES
        and weight.shape[1] % _DEPTH_MULTIPLE == 0
        and weight.stride(1) == 1
    )


class FewRowsLinear(nn.Linear):
    """A linear layer that computes by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply; see `torch.nn.Linear`."""
        return linear(input, self.weight, self.bias)


def use_few_rows_linear(model: nn.Module) -> int:
    """Let the plain linear layers of a model that can compute by `linear`, in place.

    Returns:
        How many do.
    """
    plain = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and is_suited(module.weight)
    ]
    for module in plain:
        module.__class__ = FewRowsLinear
    return len(plain)
