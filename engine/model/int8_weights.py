"""Linear layers of a CPU with int8 weights: a quarter of float32's bytes, and products of few rows
at least twice as fast.

Each output's weights are rounded to 8 bits of the largest among them; `kernels/int8_matrix.py`
says what is multiplied. That changes what a model says, so it is done only where it was asked for
by name. The float weights go as soon as they are rounded. Embeddings stay as they are: a row of
them is read, not multiplied; an output layer that shares their weight gets int8 weights of its own
beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.library import Library

from engine.config import INT8
from engine.errors import ConfigError, ModelNotSupportedError
from kernels.int8_matrix import pack_int8, quantise, unpack_int8
from kernels.packed_matrix import NAMES, SOURCE, PackedMatrix, multiply_packed, serves

_library = Library("outdraft_int8", "FRAGMENT")
_library.define(
    "multiply(Tensor x, Tensor panels, Tensor scales, Tensor? bias, int outputs) -> Tensor"
)


def _multiply(
    x: torch.Tensor,
    panels: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    outputs: int,
) -> torch.Tensor:
    is_paired = panels.shape[2] == 2
    matrix = PackedMatrix(panels, bias, outputs, x.shape[-1], is_paired, scales)
    return multiply_packed(x, matrix)


def _multiply_fake(
    x: torch.Tensor,
    panels: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    outputs: int,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


_library.impl("multiply", _multiply, "CPU")
torch.library.register_fake("outdraft_int8::multiply", _multiply_fake, lib=_library)


class Int8Weight(nn.Module):
    """The weight and the bias of a linear layer, or of several side by side, in 8 bits.

    Attributes:
        order: what is multiplied with.
        out_features: of the layer.
        panels, scales, bias: the order's tensors, for those who count and compile.
    """

    panels: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, order: PackedMatrix) -> None:
        super().__init__()
        self.order = order
        self.out_features = order.outputs
        self.register_buffer("panels", order.panels, persistent=False)
        self.register_buffer("scales", order.scales, persistent=False)
        self.register_buffer("bias", order.bias, persistent=False)

    @classmethod
    def of(
        cls, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_paired: bool = False
    ) -> Int8Weight:
        """Round a weight; it is not changed.

        Args:
            weight: [out_features, in_features].
            bias: [out_features]; stays as exact as it is.
            is_paired: see `kernels/packed_matrix.py`; products are the same.
        """
        return cls(pack_int8(*quantise(weight), is_paired=is_paired).with_bias(_detached(bias)))

    def outputs(self, begin: int, end: int, bias: torch.Tensor | None) -> Int8Weight:
        """Give some outputs a weight of their own, with their bias."""
        rounded, scales = unpack_int8(self.order)
        own = pack_int8(rounded[begin:end], scales[begin:end])
        return Int8Weight(own.with_bias(_detached(bias)))

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Compute x @ weight^T + bias.

        Args:
            x: [..., in_features], float32 or bfloat16.
        """
        if torch.compiler.is_compiling():
            product: torch.Tensor = torch.ops.outdraft_int8.multiply(
                x, self.panels, self.scales, self.bias, self.out_features
            )
            return product
        return multiply_packed(x, self.order)

    def __deepcopy__(self, _: Any) -> Int8Weight:
        """Share it with copies of a model: nobody changes it."""
        return self

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
        return self.int8.multiply(input)


def _detached(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach()


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
        become_int8(module, Int8Weight.of(module.weight, module.bias))
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
    if dtype not in NAMES:
        raise ConfigError(
            f"quantization: {INT8} is computed with activations of float32 and bfloat16, "
            f"not {str(dtype).removeprefix('torch.')}; give another --dtype."
        )
    assert isinstance(dtype, torch.dtype), "it is one of these"
    if not serves(dtype):
        raise ConfigError(
            f"quantization: {INT8} needs a C compiler (cc, gcc or clang) that compiles "
            f"kernels/{SOURCE.name}, and there is none; the log says more."
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
