"""Paged attention on the device: picks, sizes and launches the kernels.

Everything is decided from shapes and from a layout's upper bounds, never from its tensors' values,
so a call can be captured in a CUDA graph and replayed over other lengths. Two ways: requests with
few rows share out the keys of the whole batch evenly over the GPU; for many rows, each tile of
rows has a program of its own. `paged_attention_kernels.py` says how each computes. Calls on a
device follow each other: those that add up in place count in the same memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton

from kernels.launch import overlap_options
from kernels.paged_attention_kernels import attend_rows, attend_shares
from kernels.paged_attention_shares import merge_shares
from kernels.paged_layout import PagedLayout

# Above this many entries (a row and a query head) per request and KV head, by bytes of an
# element, a request's rows are cut into tiles.
MAX_SHARED_ENTRIES = {2: 128, 4: 32}
# Up to this many bytes of partial results, the program that comes last adds them up; more are
# added up by a kernel of their own, on many multiprocessors. 96 KiB should pay; no GPU has yet said
# so, and until then it stays the kernel of its own, which one has run.
MOST_BYTES_IN_PLACE = 0
MANY_MERGES = 512
# Fewer requests, one apart, are no kernel of their own.
FEWEST_BLOCK_REQUESTS = 64
INTERPRETED_PROGRAMS = 8


@dataclass(frozen=True, slots=True)
class TileSizes:
    """How one kernel is cut; what may change after measurements.

    Attributes:
        block_m: entries of a tile, each a row and a query head.
        block_n: keys per piece.
        num_warps: warps per program.
        num_stages: depth of software pipelining.
        programs_per_sm: how many programs a multiprocessor holds at once.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int = 1


def share_sizes(num_entries: int, dims: int, element_bytes: int) -> TileSizes:
    """Choose sizes for few rows, where reading keys decides.

    Up to `num_stages - 1` pieces of 32 KiB are on their way to a program at any time; the programs
    of a multiprocessor together use up its shared memory or its registers.

    Args:
        num_entries: rows times query heads that one program attends from.
        dims: of one key and one value together, each padded to a power of two.
        element_bytes: of the cache's dtype.
    """
    block_m = max(16, triton.next_power_of_2(num_entries))
    block_n = min(128, max(16, _power_of_2_up_to(32768 // (dims * element_bytes))))
    is_short = dims * element_bytes <= 512
    if block_m <= 32:
        return TileSizes(block_m, block_n, 4, 4 if is_short else 3, 2)
    if block_m == 64:
        return TileSizes(block_m, block_n, 4, 3, 2 if is_short else 1)
    return TileSizes(block_m, block_n, 8, 3, 1)


def row_sizes(group: int, dims: int, element_bytes: int) -> TileSizes:
    """Choose sizes for many rows, where the tensor cores decide.

    Args:
        group: query heads per KV head.
        dims: as above.
        element_bytes: as above.
    """
    if element_bytes > 2:  # no tensor cores
        return TileSizes(max(32, triton.next_power_of_2(group)), 16, 8, 2)
    block_m = max(128, triton.next_power_of_2(group))
    return TileSizes(block_m, 64, 8, 3 if dims <= 256 else 2)


def paged_attention_on_device(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    layout: PagedLayout,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `paged_attention` does, in Triton; arguments as there.

    Returns:
        [num_tokens, num_heads, value_head_dim], the query's dtype; padding rows hold anything.
    """
    num_tokens, num_heads, _ = query.shape
    output = query.new_empty(num_tokens, num_heads, value_cache.shape[3])
    if num_tokens == 0 or layout.seq_lens.shape[0] == 0:
        return output
    call = _Call(
        output=output,
        query=query,
        caches=(key_cache, value_cache),
        layout=layout,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=sinks,
    )
    if layout.max_query_len * call.group <= MAX_SHARED_ENTRIES[query.element_size()]:
        _launch_shares(call)
    else:
        _launch_rows(call)
    return output


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """The arguments of one call, and what both ways of computing it derive from them."""

    output: torch.Tensor
    query: torch.Tensor
    caches: tuple[torch.Tensor, torch.Tensor]
    layout: PagedLayout
    scaling: float
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def kv_heads(self) -> int:
        return self.caches[0].shape[2]

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.kv_heads

    @property
    def num_requests(self) -> int:
        return self.layout.seq_lens.shape[0]

    @property
    def line(self) -> tuple[int, int]:
        """Dimensions of a key and a value, padded, and bytes per element."""
        return sum(_padded(cache.shape[3]) for cache in self.caches), self.query.element_size()

    def inputs(self) -> dict[str, Any]:
        """Give the arguments that both attending kernels take."""
        layout = self.layout
        if self.softcap is None:
            factor, cap = self.scaling / math.log(2), 1.0
        else:
            factor = 2 * self.scaling / (self.softcap * math.log(2))
            cap = self.softcap / math.log(2)
        return {
            "output": self.output,
            "query": self.query,
            "key_cache": self.caches[0],
            "value_cache": self.caches[1],
            # A kernel that has no use for an argument still wants a pointer.
            "sinks": self.output if self.sinks is None else self.sinks,
            "tree_masks": layout.seq_lens if layout.tree_masks is None else layout.tree_masks,
            "block_tables": layout.block_tables,
            "table_rows": layout.seq_lens if layout.table_rows is None else layout.table_rows,
            "cu_seqlens_q": layout.cu_seqlens_q,
            "seq_lens": layout.seq_lens,
            "num_requests": self.num_requests,
            "table_stride": layout.block_tables.stride(0),
            "query_stride": self.query.stride(0),
            "query_head_stride": self.query.stride(1),
            "factor": factor,
            "cap": cap,
            "TREE": layout.tree_masks is not None,
            "SOFTCAP": self.softcap is not None,
            "PRECISION": "ieee" if self.query.dtype == torch.float32 else "tf32",
            "BLOCK_SIZE": layout.block_size,
            "HEAD_DIM": self.query.shape[2],
            "BLOCK_D": _padded(self.query.shape[2]),
            "HAS_TABLE_ROWS": layout.table_rows is not None,
        }

    def common(self, sizes: TileSizes) -> dict[str, Any]:
        """Give the constants that all kernels take, and how they are launched."""
        requests = self.num_requests
        if requests > 1:
            requests = max(FEWEST_BLOCK_REQUESTS, triton.next_power_of_2(requests))
        return {
            **overlap_options(self.query),
            "SINKS": self.sinks is not None,
            "WINDOW": self.sliding_window or 0,
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "VALUE_DIM": self.output.shape[2],
            "BLOCK_DV": _padded(self.output.shape[2]),
            "BLOCK_N": sizes.block_n,
            "BLOCK_REQUESTS": requests,
        }


def _launch_shares(call: _Call) -> None:
    layout, num_requests = call.layout, call.num_requests
    max_rows = min(layout.max_query_len, layout.num_tokens)
    sizes = share_sizes(max_rows * call.group, *call.line)
    most_pieces = num_requests * triton.cdiv(layout.max_seq_len, sizes.block_n)
    num_programs = max(1, num_programs_at_once(call.query.device, sizes) // call.kv_heads)
    num_programs = min(num_programs, max(1, most_pieces))
    parts = (num_programs + num_requests - 1, call.kv_heads, max_rows * call.group)
    partial = {
        "partial_outputs": call.query.new_empty(
            (*parts, call.output.shape[2]), dtype=torch.float32
        ),
        "partial_maxima": call.query.new_empty(parts, dtype=torch.float32),
        "partial_totals": call.query.new_empty(parts, dtype=torch.float32),
    }
    common = call.common(sizes)
    bytes_of_part = max_rows * call.group * call.output.shape[2] * 4
    # Requests of like length, as far as anybody knows here.
    bytes_to_merge = bytes_of_part * (triton.cdiv(num_programs, num_requests) + 1)
    is_merged_in_place = num_programs > 1 and bytes_to_merge <= MOST_BYTES_IN_PLACE
    entries, parts_at_once = 1, 0
    if is_merged_in_place:
        entries = min(16, triton.next_power_of_2(max_rows * call.group))
        values = sizes.num_warps * (4096 if num_requests == 1 else 2048)
        parts_at_once = _parts_at_once(entries, common["BLOCK_DV"], values)
    attend_shares[(call.kv_heads, num_programs)](
        **call.inputs(), **common, **partial,
        counters=_counters(call.query.device, num_requests * call.kv_heads),
        num_programs=num_programs, max_rows=max_rows,
        MERGE_ENTRIES=entries, MERGE_PARTS=parts_at_once,
        BLOCK_M=sizes.block_m, num_warps=sizes.num_warps, num_stages=sizes.num_stages,
    )  # fmt: skip
    if num_programs > 1 and not is_merged_in_place:
        _launch_merge(call, {**partial, "num_programs": num_programs, "max_rows": max_rows}, common)


def _parts_at_once(entries: int, block_dv: int, num_values: int) -> int:
    """Return how many parts of entries are read at once, of so many values at most."""
    return max(1, num_values // (entries * block_dv))


def _launch_merge(call: _Call, partial: dict[str, Any], common: dict[str, Any]) -> None:
    """Add up partial results, by programs of one head each where they are few."""
    max_rows = partial["max_rows"]
    num_programs = call.kv_heads * max_rows * call.num_requests
    heads = call.group if num_programs >= MANY_MERGES else 1
    block_heads = triton.next_power_of_2(heads)
    num_warps = 4 if heads > 1 else 8
    inputs = call.inputs()
    merged = ("output", "sinks", "cu_seqlens_q", "seq_lens", "num_requests")
    merge_shares[(call.query.shape[1] // heads, max_rows, call.num_requests)](
        **{name: inputs[name] for name in merged},
        **common, **partial,
        HEADS=heads,
        BLOCK_HEADS=block_heads,
        BLOCK_PARTS=_parts_at_once(block_heads, common["BLOCK_DV"], num_warps * 1024),
        num_warps=num_warps,
    )  # fmt: skip


def _launch_rows(call: _Call) -> None:
    sizes = row_sizes(call.group, *call.line)
    num_tiles = call.query.shape[0] // (sizes.block_m // call.group) + call.num_requests
    attend_rows[(call.kv_heads, num_tiles)](
        **call.inputs(), **call.common(sizes), BLOCK_M=sizes.block_m,
        num_warps=sizes.num_warps, num_stages=sizes.num_stages,
    )  # fmt: skip


_held_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def _counters(device: torch.device, count: int) -> torch.Tensor:
    """Give counters that are 0; kernels leave them so."""
    key = device, max(1024, triton.next_power_of_2(count))
    counters = _held_counters.get(key)
    if counters is None:
        counters = torch.zeros(key[1], dtype=torch.int32, device=device)
        # What is made while a graph is recorded is 0 only while that graph runs.
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            _held_counters[key] = counters
    return counters


def _padded(dim: int) -> int:
    """Return a dimension's size in tiles: powers of two, and a tensor core's 16 at least."""
    return int(max(16, triton.next_power_of_2(dim)))


def _power_of_2_up_to(limit: int) -> int:
    return 1 << max(0, limit.bit_length() - 1)


@lru_cache
def num_programs_at_once(device: torch.device, sizes: TileSizes) -> int:
    """Return how many programs of these sizes a device runs at the same time."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * sizes.programs_per_sm
