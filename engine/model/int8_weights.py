"""Linear layers of a CPU with int8 weights: a quarter of float32's bytes, and products of few rows
at least twice as fast.

Each output's weights are rounded to 8 bits of the largest among them; `kernels/int8_linear_cpu.py`
multiplies. That changes what a model says, so it is done only where it was asked for by name. The
float weights go as soon as they are rounded. Embeddings stay as they are: a row of them is read,
not multiplied; an output layer that shares their weight gets int8 weights of its own beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.library import Library

from engine.config import INT8
from engine.errors import ConfigError, ModelNotSupportedError
from kernels.int8_linear_cpu import DTYPES, from_panels, int8_linear, quantise, serves, to_panels

_library = Library("outdraft_int8", "FRAGMENT")
_library.define("multiply(Tensor x, Tensor panels, Tensor scales, Tensor? bias) -> Tensor")


def _multiply_fake(
    x: torch.Tensor, panels: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], scales.shape[0])


_library.impl("multiply", int8_linear, "CPU")
torch.library.register_fake("outdraft_int8::multiply", _multiply_fake, lib=_library)


class Int8Weight(nn.Module):
    """The weight of a linear layer, or of several side by side, in 8 bits.

    Attributes:
        panels: in the order of the kernel.
        scales: [out_features] float32, what one step of each output's weights is worth.
        in_features: of the layer.
    """

    panels: torch.Tensor
    scales: torch.Tensor

    def __init__(self, rounded: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.in_features = rounded.shape[1]
        self.register_buffer("panels", to_panels(rounded), persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8Weight:
        """Round a weight [out_features, in_features]; it is not changed."""
        return cls(*quantise(weight))

    def outputs(self, begin: int, end: int) -> Int8Weight:
        """Give some outputs a weight of their own."""
        rounded = from_panels(self.panels, self.scales.shape[0], self.in_features)
        return Int8Weight(rounded[begin:end], self.scales[begin:end].clone())

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute x @ weight^T + bias.

        Args:
            x: [..., in_features], float32 or bfloat16.
            bias: [out_features], x's dtype, or None.
        """
        if torch.compiler.is_compiling():
            product: torch.Tensor = torch.ops.outdraft_int8.multiply(
                x, self.panels, self.scales, bias
            )
            return product
        return int8_linear(x, self.panels, self.scales, bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        raise RuntimeError("int8 weights are neither moved nor cast; load the model anew.")


class Int8Linear(nn.Linear):
    """A linear layer with an int8 weight; `weight` is None.

    Attributes:
        int8: its weight.
    """

    int8: Int8Weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply; see `torch.nn.Linear`."""
        return self.int8.multiply(input, self.bias)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer of torch's own, and nothing more."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and "forward" not in vars(module)
    )


def let_go_of_weight(module: nn.Linear) -> None:
    """Leave a linear layer without its float weight, which is freed unless it is shared."""
    module.register_parameter("weight", None)


def use_int8_linear(model: nn.Module) -> int:
    """Round the weights of a model's plain linear layers, one after the other, in place.

    Returns:
        How many there were.
    """
    plain = [module for module in model.modules() if is_plain(module)]
    for module in plain:
        become_int8(module, Int8Weight.of(module.weight))
    return len(plain)


def become_int8(module: nn.Linear, weight: Int8Weight) -> None:
    """Make a linear layer one with an int8 weight, in place."""
    let_go_of_weight(module)
    module.__class__ = Int8Linear
    module.int8 = weight


def check_int8(device: torch.device, dtype: torch.dtype | str) -> None:
    """Check that this machine multiplies with int8 weights.

    Args:
        device: where the model will be.
        dtype: of its activations.

    Raises:
        ConfigError: it does not.
    """
    if device.type != "cpu":
        raise ConfigError(
            f"quantization: {INT8} is computed on CPUs alone, and the device is {device}; "
            "give --device cpu, or --quantization none."
        )
    if dtype not in DTYPES:
        raise ConfigError(
            f"quantization: {INT8} is computed with activations of float32 and bfloat16, "
            f"not {str(dtype).removeprefix('torch.')}; give another --dtype."
        )
    assert isinstance(dtype, torch.dtype), "it is one of these"
    if not serves(dtype):
        raise ConfigError(
            f"quantization: {INT8} needs a C compiler (cc, gcc or clang) that compiles "
            "kernels/int8_linear_cpu.c, and there is none; the log says more."
        )


def check_layers(model: nn.Module) -> None:
    """Check that most of what a model multiplies with is in plain linear layers.

    Raises:
        ModelNotSupportedError: it is not; names the architecture.
    """
    modules = list(model.modules())
    embeddings = {id(m.weight) for m in modules if isinstance(m, nn.Embedding)}
    plain = {id(m.weight): m.weight.numel() for m in modules if is_plain(m)}
    matrices = {id(p): p.numel() for p in model.parameters() if p.ndim > 1}
    others = sum(n for key, n in matrices.items() if key not in plain and key not in embeddings)
    if others > sum(plain.values()):
        raise ModelNotSupportedError(
            f"quantization: {INT8} rounds plain linear layers, which are {sum(plain.values())} of "
            f"{type(model).__name__}'s weights, and {others} are multiplied otherwise (experts, "
            "convolutions); give --quantization none."
        )


def leave_files(model: nn.Module) -> None:
    """Copy what floats are left out of the files that they are mapped from, and these are let go.

    A file is mapped as a whole, so one small weight would keep it all.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
