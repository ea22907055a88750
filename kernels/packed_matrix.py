"""Rows times a weight that was reordered once, on a CPU, by C functions.

    y[t, o] = sum_i x[t, i] * weight[o, i] + bias[o]

Outputs stand in panels of 32, and a panel's numbers as the product reads them: [panels,
in_features, 32]; in bfloat16 two inputs of an output stand next to each other, [panels,
in_features / 2, 32, 2], as the processors want them that multiply bfloat16. Paired outputs, two
halves of one length, share panels, 16 of either half, so that a gated layer has both parts of a
number at once. Sums are float32. Weights of int8 (`int8_matrix.py`) have bfloat16's order, one
scale for each output, and rows of either type. Knows weights and nothing of layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from kernels.native_library import native_library

SOURCE = Path(__file__).with_name("decoder_layers_cpu.c")
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
PANEL = 32
STORE = 0
_STEPS = {torch.float32: 1, torch.bfloat16: 2}


class MatrixStruct(ctypes.Structure):
    """`PackedMatrix` of `packed_matrix.h`."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("is_paired", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("result", ctypes.c_void_p),
        ("result_stride", ctypes.c_int64),
        ("finish", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A reordered weight.

    Attributes:
        panels: see above; float32, bfloat16 or int8.
        bias: [panels * 32] float32 in the panels' order, or None.
        outputs: out_features.
        depth: in_features.
        is_paired: whether outputs are paired.
        scales: of int8, [panels * 32] float32 in the panels' order, else None.
    """

    panels: torch.Tensor
    bias: torch.Tensor | None
    outputs: int
    depth: int
    is_paired: bool
    scales: torch.Tensor | None = None
    struct: MatrixStruct = field(init=False)

    def __post_init__(self) -> None:
        bias, scales = (
            None if tensor is None else tensor.data_ptr() for tensor in (self.bias, self.scales)
        )
        panels, is_paired = self.panels.data_ptr(), int(self.is_paired)
        struct = MatrixStruct(panels, bias, self.outputs, self.depth, is_paired, scales)
        object.__setattr__(self, "struct", struct)

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether rows of a type are multiplied with this weight."""
        return dtype in NAMES if self.scales is not None else dtype == self.panels.dtype

    def with_bias(self, bias: torch.Tensor | None) -> PackedMatrix:
        """Return the same weight with a bias [out_features]."""
        ordered = None if bias is None else in_panels(bias.float()[:, None], 1, self.is_paired)
        return replace(self, bias=None if ordered is None else ordered.flatten())


@lru_cache
def serves(dtype: torch.dtype) -> bool:
    """Whether this machine has the functions for weights of a type."""
    return dtype in NAMES and native_library(SOURCE) is not None


def can_pack(weight: torch.Tensor) -> bool:
    """Whether a weight [out_features, in_features] can be reordered and multiplied here."""
    return (
        weight.device.type == "cpu"
        and serves(weight.dtype)
        and weight.shape[1] % _STEPS[weight.dtype] == 0
    )


def pack_matrix(weight: torch.Tensor, *, is_paired: bool = False) -> PackedMatrix:
    """Reorder a weight; it is not changed.

    Args:
        weight: [out_features, in_features].
        is_paired: outputs are two halves of one length.
    """
    panels = in_panels(weight.detach(), _STEPS[weight.dtype], is_paired)
    outputs, depth = weight.shape
    return PackedMatrix(panels, None, outputs, depth, is_paired)


def multiply_packed(x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
    """Multiply rows with a reordered weight, with as many threads as torch has.

    Args:
        x: [..., in_features], of a dtype that the weight takes.
        matrix: the weight.

    Returns:
        [..., out_features], the same dtype.

    Raises:
        MemoryError: there is no memory for rounded rows.
        RuntimeError: `x` is of another type or size than the weight.
    """
    if not matrix.takes(x.dtype) or x.shape[-1] != matrix.depth:
        raise RuntimeError(
            f"{x.dtype} rows of {x.shape[-1]} by a {matrix.panels.dtype} weight of {matrix.depth}."
        )
    rows = x.reshape(-1, matrix.depth)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    result = rows.new_empty(rows.shape[0], matrix.outputs)
    product = _Product(
        rows.data_ptr(), rows.shape[0], rows.stride(0), result.data_ptr(), matrix.outputs, STORE
    )
    if _function(x.dtype)(matrix.struct, product, torch.get_num_threads()):
        raise MemoryError(f"no memory for {rows.shape[0]} rounded rows.")
    return result.view(*x.shape[:-1], matrix.outputs)


def in_panels(weight: torch.Tensor, step: int, is_paired: bool) -> torch.Tensor:
    """Order [out_features, in_features] as [panels, in_features / step, 2 or 1, 16 or 32, step].

    What is beyond the weight is zero. `from_panels` undoes it.
    """
    outputs, depth = weight.shape
    halves = 2 if is_paired else 1
    lanes = PANEL // halves
    count = -(-outputs // (halves * lanes))
    steps = -(-depth // step)
    room = weight.new_zeros(halves, count * lanes, steps * step)
    room[:, : outputs // halves, :depth] = weight.view(halves, -1, depth)
    # [halves, panels, lanes, steps, step] -> [panels, steps, halves, lanes, step]
    ordered = room.view(halves, count, lanes, steps, step).permute(1, 3, 0, 2, 4)
    return ordered.contiguous()


def from_panels(panels: torch.Tensor, outputs: int, depth: int) -> torch.Tensor:
    """Return the [out_features, in_features] that was put into panels."""
    _, steps, halves, _, step = panels.shape
    room = panels.permute(2, 0, 3, 1, 4).reshape(halves, -1, steps * step)
    return room[:, : outputs // halves, :depth].reshape(outputs, depth)


@lru_cache
def _function(dtype: torch.dtype) -> Callable[[MatrixStruct, _Product, int], int]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = getattr(library, f"multiply_matrix_{NAMES[dtype]}")
    function.argtypes = (
        ctypes.POINTER(MatrixStruct),
        ctypes.POINTER(_Product),
        ctypes.c_int64,
    )
    made: Callable[[MatrixStruct, _Product, int], int] = function
    return made
