"""Norms of few rows on a CPU by a C function: torch spends more on starting six operations.

What is computed is told in `rms_norm.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from kernels.native_library import native_library

SOURCE = Path(__file__).with_suffix(".c")
# Beyond, several threads are better than one pass.
MOST_ELEMENTS = 2**17
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_P, _N = ctypes.c_void_p, ctypes.c_int64


@lru_cache
def serves(dtype: torch.dtype) -> bool:
    """Whether this machine has the function for a type."""
    return dtype in _NAMES and native_library(SOURCE) is not None


def can_serve(hidden: torch.Tensor) -> bool:
    """Whether it is faster with so many rows."""
    return hidden.device.type == "cpu" and hidden.numel() <= MOST_ELEMENTS and serves(hidden.dtype)


@lru_cache
def _function(dtype: torch.dtype) -> Callable[..., None]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = library[f"rms_norm_{_NAMES[dtype]}"]
    function.argtypes = (_P, _P, _P, _N, _N, ctypes.c_float, ctypes.c_int)
    function.restype = None
    return function


def rms_norm_on_cpu(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, is_gemma: bool
) -> torch.Tensor:
    """Do what `rms_norm` does."""
    hidden, weight = hidden.contiguous(), weight.contiguous()
    output, size = torch.empty_like(hidden), hidden.shape[-1]
    _function(hidden.dtype)(
        hidden.data_ptr(),
        weight.data_ptr(),
        output.data_ptr(),
        hidden.numel() // max(1, size),
        size,
        epsilon,
        is_gemma,
    )
    return output
