"""Attention of few rows per request on a CPU, by a C function that reads the cache where it lies.

Nothing is gathered and nothing masked, so it costs what the keys cost, and no request's result
depends on the requests beside it. `paged_attention.py` has the formula.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from kernels.native_library import native_library

SOURCE = Path(__file__).with_suffix(".c")
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
# Keys that are worth another thread.
_KEYS_PER_THREAD = 2048


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key_cache", "value_cache", "output")),
        *((name, ctypes.c_void_p) for name in ("rows", "visible", "requests", "tables", "sinks")),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("query_row_stride", "query_head_stride", "table_width"),
                *("num_heads", "num_kv_heads", "head_dim", "value_dim", "block_size", "window"),
            )
        ),
        *((name, ctypes.c_float) for name in ("scaling", "softcap")),
    )


@dataclass(frozen=True, slots=True, eq=False)
class FewRows:
    """Rows that are attended to one by one.

    Attributes:
        rows: [num_rows] int32, packed rows.
        visible: [num_rows] int32, keys that each may see, its own included.
        requests: [num_rows] int32, whose rows of `tables`.
        tables: [num_requests, max_blocks] int32.
        block_size: tokens per block.
    """

    rows: np.ndarray
    visible: np.ndarray
    requests: np.ndarray
    tables: np.ndarray
    block_size: int


@lru_cache
def serves(dtype: torch.dtype) -> bool:
    """Whether this machine has the function for caches of a type."""
    return dtype in _NAMES and native_library(SOURCE) is not None


def make_few_rows(
    spans: Sequence[tuple[int, int, int]], tables: Sequence[Sequence[int]], block_size: int
) -> FewRows:
    """Lay out rows.

    Args:
        spans: for each request its first packed row, its number of rows, and its keys.
        tables: for each its blocks.
        block_size: tokens per block.
    """
    first, counts, lengths = np.array(spans, dtype=np.int32).T
    total = int(counts.sum())
    ends = np.cumsum(counts, dtype=np.int32)
    place = np.arange(total, dtype=np.int32)
    offset = place - np.repeat(ends - counts, counts)
    packed = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for line, blocks in zip(packed, tables, strict=True):
        line[: len(blocks)] = blocks
    return FewRows(
        rows=np.repeat(first, counts) + offset,
        visible=np.repeat(lengths - counts + 1, counts) + offset,
        requests=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        tables=packed,
        block_size=block_size,
    )


def attend_few_rows(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    few: FewRows,
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
        few: which rows.
        output: [num_tokens, num_heads, value_head_dim], contiguous.
        scaling, sliding_window, softcap, sinks: see `paged_attention`.

    Raises:
        MemoryError: there is no memory for one row's scores.
    """
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = getattr(library, f"attend_rows_{_NAMES[key_cache.dtype]}")
    sinks = None if sinks is None else sinks.float().contiguous()
    call = _Call(
        query=query.data_ptr(),
        key_cache=key_cache.data_ptr(),
        value_cache=value_cache.data_ptr(),
        output=output.data_ptr(),
        rows=few.rows.ctypes.data,
        visible=few.visible.ctypes.data,
        requests=few.requests.ctypes.data,
        tables=few.tables.ctypes.data,
        sinks=None if sinks is None else sinks.data_ptr(),
        query_row_stride=query.stride(0),
        query_head_stride=query.stride(1),
        table_width=few.tables.shape[1],
        num_heads=query.shape[1],
        num_kv_heads=key_cache.shape[2],
        head_dim=query.shape[2],
        value_dim=value_cache.shape[3],
        block_size=few.block_size,
        window=sliding_window or 0,
        scaling=scaling,
        softcap=softcap or 0.0,
    )

    def attend(begin: int, end: int) -> None:
        if function(ctypes.byref(call), ctypes.c_int64(begin), ctypes.c_int64(end)):
            raise MemoryError("attention: no memory for the scores of a row.")

    bounds = _shares(few, torch.get_num_threads())
    if len(bounds) == 2:
        attend(*bounds)
    else:
        list(_pool().map(attend, bounds[:-1], bounds[1:]))


def _shares(few: FewRows, num_threads: int) -> list[int]:
    """Share rows out among threads, by their keys; returns where shares begin, and the end."""
    num_rows = len(few.rows)
    if num_threads == 1:
        return [0, num_rows]
    # Requests stay whole: their rows are computed together.
    last = np.flatnonzero(np.diff(few.requests, append=-1))
    keys = np.cumsum(few.visible)[last]
    count = min(num_threads, max(1, int(keys[-1]) // _KEYS_PER_THREAD))
    wanted = keys[-1] * np.arange(1, count) / count
    ends = last[np.searchsorted(keys, wanted)] + 1
    return [0, *(end for end in dict.fromkeys(ends.tolist()) if end < num_rows), num_rows]


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="attention")
