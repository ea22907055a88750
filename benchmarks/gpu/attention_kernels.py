"""Paged attention at the 8B shape: decode and verify passes by bandwidth, prompts by arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.device_times import Call, num_copies, time_calls
from benchmarks.gpu.kernel_times import each, note_bandwidth
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, ours
from kernels.paged_layout import PagedLayout

ROWS = (1, 4, 9)
_BLOCK_SIZE = 16
_PROMPT_CHUNK = 2048


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure decode and verify passes at one context, then prompts."""
    sizes = workshop.sizes
    attend = ours("kernels.paged_attention", "paged_attention")
    cases: list[tuple[str, Callable[[], None]]] = []
    for batch in sizes.batches:
        for rows in ROWS:
            name = f"attention, {batch} requests of {rows} rows, {sizes.context} keys"
            cases.append((name, partial(_decode, workshop, notes, attend, name, batch, rows)))
    for rows in (min(_PROMPT_CHUNK, sizes.context), sizes.context):
        name = f"attention, the last {rows} rows of a prompt of {sizes.context}"
        cases.append((name, partial(_prompt, workshop, notes, attend, name, rows)))
    each(notes, cases)


def _decode(
    workshop: Workshop, notes: Notes, attend: Any, name: str, batch: int, rows: int
) -> None:
    sizes = workshop.sizes
    per_key = 2 * sizes.kv_heads * sizes.head_dim * workshop.dtype.itemsize
    num_bytes = batch * sizes.context * per_key
    copies = num_copies(num_bytes, workshop.device)
    calls = _calls(workshop, attend, batch, rows, copies)
    times = time_calls(calls, workshop.device, repeats=workshop.sizes.repeats)
    queries = 2 * batch * rows * sizes.heads * sizes.head_dim * workshop.dtype.itemsize
    note_bandwidth(workshop, notes, name, times, num_bytes + queries)


def _prompt(workshop: Workshop, notes: Notes, attend: Any, name: str, rows: int) -> None:
    sizes = workshop.sizes
    calls = _calls(workshop, attend, 1, rows, copies=2)
    times = time_calls(calls, workshop.device, repeats=max(3, sizes.repeats // 3))
    pairs = rows * (sizes.context - rows) + rows * (rows + 1) // 2
    flops = 4 * sizes.heads * sizes.head_dim * pairs / times.seconds
    notes.add(name, flops / 1e12, "TFLOP/s")
    notes.add("- of the matrix ceiling", flops / workshop.ceilings.flops_per_s)


def _calls(workshop: Workshop, attend: Any, batch: int, rows: int, copies: int) -> list[Call]:
    """Give calls over keys that no other call reads."""
    sizes, device = workshop.sizes, workshop.device
    blocks = -(-sizes.context // _BLOCK_SIZE)
    total = copies * batch * blocks + 1
    caches = [workshop.random(total, _BLOCK_SIZE, sizes.kv_heads, sizes.head_dim) for _ in range(2)]
    order = torch.randperm(total - 1, device=device).to(torch.int32) + 1
    tables = order.view(copies, batch, blocks)
    bounds = torch.arange(batch + 1, device=device, dtype=torch.int32) * rows
    lengths = torch.full((batch,), sizes.context, device=device, dtype=torch.int32)
    query = workshop.random(batch * rows, sizes.heads, sizes.head_dim)
    return [
        partial(
            attend,
            query,
            *caches,
            PagedLayout(
                block_tables=table,
                cu_seqlens_q=bounds,
                seq_lens=lengths,
                block_size=_BLOCK_SIZE,
                num_tokens=batch * rows,
                max_query_len=rows,
                max_seq_len=sizes.context,
            ),
            scaling=sizes.head_dim**-0.5,
        )
        for table in tables.unbind()
    ]
