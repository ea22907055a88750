"""Attention on a CPU by a C function that reads the cache where it lies.

Nothing is masked nor computed for rows that do not see it, few rows have nothing gathered for them,
and no request's result depends on the requests beside it. `paged_attention.py` has the formula.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from kernels.native_library import native_library
from kernels.packed_matrix import NAMES, SOURCE, serves

__all__ = ["AttendedRows", "attend_rows", "make_attended_rows", "serves"]


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key_cache", "value_cache", "output")),
        *((name, ctypes.c_void_p) for name in ("rows", "visible", "requests", "tables", "sinks")),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("query_row_stride", "query_head_stride", "table_width"),
                *("key_stride", "value_stride", "output_stride"),
                *("num_heads", "num_kv_heads", "head_dim", "value_dim", "block_size", "window"),
            )
        ),
        *((name, ctypes.c_float) for name in ("scaling", "softcap")),
    )


class AttendedRows:
    """Rows of a pass and what they see; one array, as every further one takes time to make.

    Args:
        rows: packed rows, those of a request next to each other.
        visible: keys that each may see, its own included.
        requests: whose each is, counted from 0.
        tables: of each request, its blocks.
        block_size: tokens per block.

    Attributes:
        num_rows: as given.
        table_width: blocks of the longest table; the others are filled up with 0.
        block_size: as given.
        addresses: of rows, visible, requests and tables, [num_requests, table_width], all int32.
    """

    __slots__ = ("_numbers", "addresses", "block_size", "num_rows", "table_width")

    def __init__(
        self,
        rows: list[int],
        visible: list[int],
        requests: list[int],
        tables: Sequence[Sequence[int]],
        block_size: int,
    ) -> None:
        self.num_rows = len(rows)
        self.table_width = max(map(len, tables))
        self.block_size = block_size
        numbers = [*rows, *visible, *requests]
        for table in tables:
            numbers += table
            numbers += [0] * (self.table_width - len(table))
        self._numbers = np.array(numbers, dtype=np.int32)
        start, step = self._numbers.ctypes.data, 4 * self.num_rows
        self.addresses = (start, start + step, start + 2 * step, start + 3 * step)

    @property
    def rows(self) -> np.ndarray:
        """Packed rows, [num_rows]."""
        return self._numbers[: self.num_rows]

    @property
    def visible(self) -> np.ndarray:
        """Keys that each row may see, [num_rows]."""
        return self._numbers[self.num_rows : 2 * self.num_rows]

    @property
    def requests(self) -> np.ndarray:
        """Whose each row is, [num_rows]."""
        return self._numbers[2 * self.num_rows : 3 * self.num_rows]

    @property
    def tables(self) -> np.ndarray:
        """Blocks of each request, [num_requests, table_width]."""
        return self._numbers[3 * self.num_rows :].reshape(-1, self.table_width)


@lru_cache
def _function(dtype: torch.dtype) -> Callable[[_Call, int, int], int]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = getattr(library, f"attend_rows_{NAMES[dtype]}")
    function.argtypes = (ctypes.POINTER(_Call), ctypes.c_int64, ctypes.c_int64)
    made: Callable[[_Call, int, int], int] = function
    return made


def make_attended_rows(
    spans: Sequence[tuple[int, int, int]], tables: Sequence[Sequence[int]], block_size: int
) -> AttendedRows:
    """Lay out rows.

    Args:
        spans: for each request its first packed row, its number of rows, and its keys.
        tables: for each its blocks.
        block_size: tokens per block.
    """
    rows: list[int] = []
    visible: list[int] = []
    requests: list[int] = []
    for request, (first, count, length) in enumerate(spans):
        rows += range(first, first + count)
        visible += range(length - count + 1, length + 1)
        requests += [request] * count
    return AttendedRows(rows, visible, requests, tables, block_size)


def attend_rows(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    attended: AttendedRows,
    output: torch.Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> None:
    """Attend from some rows, and write their lines of the output.

    Args:
        query: [num_tokens, num_heads, head_dim], the cache's dtype, last dimension dense.
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        value_cache: [num_blocks, block_size, num_kv_heads, value_head_dim], contiguous.
        attended: which rows.
        output: [num_tokens, num_heads, value_head_dim], contiguous.
        scaling, sliding_window, softcap, sinks: see `paged_attention`.

    Raises:
        MemoryError: there is no memory for one row's scores.
    """
    sinks = None if sinks is None else sinks.float().contiguous()
    _, num_heads, head_dim = query.shape
    _, _, num_kv_heads, value_dim = value_cache.shape
    row_stride, head_stride, _ = query.stride()
    call = _Call(  # by position, in half the time that names take
        query.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(), output.data_ptr(),
        *attended.addresses, None if sinks is None else sinks.data_ptr(),
        row_stride, head_stride, attended.table_width,
        num_kv_heads * head_dim, num_kv_heads * value_dim, num_heads * value_dim,
        num_heads, num_kv_heads, head_dim, value_dim, attended.block_size, sliding_window or 0,
        scaling, softcap or 0.0,
    )  # fmt: skip

    if _function(key_cache.dtype)(call, attended.num_rows, torch.get_num_threads()):
        raise MemoryError(f"attention: no memory for {attended.num_rows} rows.")
