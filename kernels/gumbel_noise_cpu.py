"""Gumbel noise on a CPU by a C function; `engine/sampling/noise.py` says what its numbers are.

Its logarithms are within a unit in the last place of float64, so that rounded to float32 they are
numpy's but for about one number in a hundred million.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kernels.native_library import native_library

SOURCE = Path(__file__).with_suffix(".c")


@lru_cache
def serves() -> bool:
    """Whether this machine has the function."""
    return native_library(SOURCE) is not None


def gumbel_noise_on_cpu(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int], vocab_size: int
) -> npt.NDArray[np.float32]:
    """Compute one row of noise per (seed, choice, position).

    Returns:
        [num_rows, vocab_size].
    """
    keys = np.array([seeds, choices, positions], dtype=np.uint64)
    num_rows = keys.shape[1]
    noise = np.empty((num_rows, vocab_size), dtype=np.float32)
    start, step = keys.ctypes.data, 8 * num_rows
    _function()(start, start + step, start + 2 * step, num_rows, vocab_size, noise.ctypes.data)
    return noise


@lru_cache
def _function() -> Callable[..., None]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = library.gumbel_noise
    function.argtypes = (
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_int64] * 2,
        ctypes.c_void_p,
    )
    function.restype = None
    made: Callable[..., None] = function
    return made
