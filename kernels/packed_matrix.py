"""Rows times a weight that was reordered once, on a CPU, by C functions.

    y[t, o] = sum_i x[t, i] * weight[o, i] + bias[o]

Outputs stand in panels of 32, and a panel's numbers as the product reads them: [panels,
in_features, 32]; in bfloat16 two inputs of an output stand next to each other, [panels,
in_features / 2, 32, 2], as the processors want them that multiply bfloat16. Paired outputs, two
halves of one length, share panels, 16 of either half, so that a gated layer has both parts of a
number at once. Sums are float32. Knows weights and nothing of layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
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
        panels: see above; float32 or bfloat16.
        bias: [panels * 32] float32 in the panels' order, or None.
        outputs: out_features.
        depth: in_features.
        is_paired: whether outputs are paired.
    """

    panels: torch.Tensor
    bias: torch.Tensor | None
    outputs: int
    depth: int
    is_paired: bool
    struct: MatrixStruct = field(init=False)

    def __post_init__(self) -> None:
        bias = None if self.bias is None else self.bias.data_ptr()
        struct = MatrixStruct(
            self.panels.data_ptr(), bias, self.outputs, self.depth, int(self.is_paired)
        )
        object.__setattr__(self, "struct", struct)

    def with_bias(self, bias: torch.Tensor | None) -> PackedMatrix:
        """Return the same weight with a bias [out_features]."""
        ordered = None if bias is None else _panels_of(bias.float()[:, None], 1, self.is_paired)
        ordered = None if ordered is None else ordered.flatten()
        return PackedMatrix(self.panels, ordered, self.outputs, self.depth, self.is_paired)


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
    panels = _panels_of(weight.detach(), _STEPS[weight.dtype], is_paired)
    outputs, depth = weight.shape
    return PackedMatrix(panels, None, outputs, depth, is_paired)


def multiply_packed(x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
    """Multiply rows with a reordered weight, with as many threads as torch has.

    Args:
        x: [..., in_features], the weight's dtype.
        matrix: the weight.

    Returns:
        [..., out_features], the same dtype.

    Raises:
        RuntimeError: `x` is of another type or size than the weight.
    """
    if x.dtype != matrix.panels.dtype or x.shape[-1] != matrix.depth:
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
    _function(x.dtype)(matrix.struct, product, torch.get_num_threads())
    return result.view(*x.shape[:-1], matrix.outputs)


def _panels_of(weight: torch.Tensor, step: int, is_paired: bool) -> torch.Tensor:
    """Order [out_features, in_features] as [panels, in_features / step, 32, step]."""
    outputs, depth = weight.shape
    halves = 2 if is_paired else 1
    lanes = PANEL // halves
    count = -(-outputs // (halves * lanes))
    room = weight.new_zeros(halves, count * lanes, depth)
    room[:, : outputs // halves] = weight.view(halves, -1, depth)
    # [halves, panels, lanes, steps, step] -> [panels, steps, halves, lanes, step]
    ordered = room.view(halves, count, lanes, depth // step, step).permute(1, 3, 0, 2, 4)
    return ordered.contiguous()


@lru_cache
def _function(dtype: torch.dtype) -> Callable[[MatrixStruct, _Product, int], None]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = getattr(library, f"multiply_matrix_{NAMES[dtype]}")
    function.argtypes = (
        ctypes.POINTER(MatrixStruct),
        ctypes.POINTER(_Product),
        ctypes.c_int64,
    )
    function.restype = None
    made: Callable[[MatrixStruct, _Product, int], None] = function
    return made
