"""Products of rows with int8 weights on a CPU by a C function; weights are read as they are stored.

    weight[o, i] = scales[o] * q[o, i]                        -127 <= q <= 127
    step[r] = max_i |x[r, i]| / 32767
    output[r, o] = step[r] * scales[o] * sum_i q[o, i] * round(x[r, i] / step[r]) + bias[o]

Activations are rounded to 16 bits of their row's largest number, which is much finer than bfloat16:
so processors multiply integers, twice as many at once as numbers of float32, and int8 becomes int16
by one instruction. Sums of 512 products are exact, and they are added up in float32 in one order,
so no row's result depends on how many rows are beside it, nor on threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch

from kernels.native_library import native_library

SOURCE = Path(__file__).with_suffix(".c")
DTYPES = (torch.float32, torch.bfloat16)
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_LANES = 16
_LARGEST = 127
# Panels that are computed together are not shared out.
_PANELS_TOGETHER = 4
# Products that are worth another thread; one row costs about as much as two.
_PRODUCTS_PER_THREAD = 2**22
_LEAST_ROWS = 2


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "panels", "scales", "bias", "output")),
        *((name, ctypes.c_int64) for name in ("rows", "depth", "width")),
    )


@lru_cache
def serves(dtype: torch.dtype) -> bool:
    """Whether this machine has the function for activations of a type."""
    return dtype in DTYPES and native_library(SOURCE) is not None


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


def to_panels(rounded: torch.Tensor) -> torch.Tensor:
    """Put a weight into the order in which it is multiplied.

    Args:
        rounded: [out_features, in_features] int8.

    Returns:
        [num_panels, num_pairs, 16, 2] int8: panels of outputs, pairs of inputs; what is beyond the
        weight is zero.
    """
    width, depth = rounded.shape
    panels, pairs = -(-width // _LANES), -(-depth // 2)
    padded = rounded.new_zeros(panels * _LANES, pairs * 2)
    padded[:width, :depth] = rounded
    return padded.view(panels, _LANES, pairs, 2).transpose(1, 2).contiguous()


def from_panels(panels: torch.Tensor, width: int, depth: int) -> torch.Tensor:
    """Undo `to_panels`.

    Returns:
        [width, depth] int8.
    """
    return panels.transpose(1, 2).reshape(-1, panels.shape[1] * 2)[:width, :depth].contiguous()


def int8_linear(
    x: torch.Tensor, panels: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply rows with a quantised weight.

    Args:
        x: [..., in_features], one of `DTYPES`, on a CPU.
        panels: of `to_panels`.
        scales: [out_features] float32.
        bias: [out_features], x's dtype, contiguous; or None.

    Returns:
        [..., out_features], x's dtype.

    Raises:
        MemoryError: there is no memory for the rounded rows.
    """
    x, width = x.contiguous(), scales.shape[0]
    output = x.new_empty(*x.shape[:-1], width)
    num_rows = output.numel() // width
    call = _Call(
        x.data_ptr(),
        panels.data_ptr(),
        scales.data_ptr(),
        None if bias is None else bias.data_ptr(),
        output.data_ptr(),
        num_rows,
        x.shape[-1],
        width,
    )
    function = _function(x.dtype)

    def multiply(begin: int, end: int) -> None:
        if function(ctypes.byref(call), begin, end):
            raise MemoryError(f"int8_linear: no memory for {num_rows} rounded rows.")

    bounds = _shares(panels, num_rows, torch.get_num_threads())
    if len(bounds) == 2:
        multiply(*bounds)
    else:
        list(_pool().map(multiply, bounds[:-1], bounds[1:]))
    return output


@lru_cache
def _function(dtype: torch.dtype) -> Callable[..., int]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = library[f"int8_linear_{_NAMES[dtype]}"]
    function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


def _shares(panels: torch.Tensor, num_rows: int, num_threads: int) -> list[int]:
    """Share panels out among threads; returns where shares begin, and the end."""
    num_panels = panels.shape[0]
    products = panels.numel() * max(num_rows, _LEAST_ROWS)
    count = min(num_threads, products // _PRODUCTS_PER_THREAD)
    if count < 2:
        return [0, num_panels]
    groups = -(-num_panels // _PANELS_TOGETHER)
    begins = [groups * index // count * _PANELS_TOGETHER for index in range(count)]
    return [*dict.fromkeys(begins), num_panels]


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="int8_linear")
