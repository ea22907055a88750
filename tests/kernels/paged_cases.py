"""Batches for paged attention: caches that hold values only where a request owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kernels.paged_attention import paged_attention_reference
from kernels.paged_layout import PagedLayout

SCALING = 0.3


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's attention and of its cache's blocks."""

    num_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    block_size: int = 4


@dataclass
class PagedCase:
    """One batch; (rows, keys) of request i are `batch[i]`."""

    batch: Sequence[tuple[int, int]]
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    layout: PagedLayout

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout]:
        """What paged attention takes."""
        return self.query, self.key_cache, self.value_cache, self.layout

    def reference(self, **extras: object) -> torch.Tensor:
        """Give the rows that are no padding, in float64 on the CPU."""
        layout = self.layout
        trees = None if layout.tree_masks is None else layout.tree_masks.cpu()
        cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in extras.items()}
        output = paged_attention_reference(
            self.query.cpu(), self.key_cache.cpu(), self.value_cache.cpu(),
            layout.block_tables.cpu(), layout.cu_seqlens_q.cpu(), layout.seq_lens.cpu(),
            scaling=SCALING, tree_masks=trees, **cpu,
        )  # fmt: skip
        return output[: self.num_rows]

    @property
    def num_rows(self) -> int:
        """Rows that are no padding."""
        return sum(rows for rows, _ in self.batch)

    def with_layout(self, **changes: object) -> PagedCase:
        """Give the same case with other bounds or tensors in its layout."""
        return replace(self, layout=replace(self.layout, **changes))


def make_paged_case(
    batch: Sequence[tuple[int, int]],
    shape: Shape = Shape(),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    num_padding_rows: int = 0,
    first_block: int = 1,
) -> PagedCase:
    """Make a case whose caches are NaN wherever no request has a key."""
    generator = torch.Generator().manual_seed(len(batch) + sum(keys for _, keys in batch))
    on_device = torch.Generator(device).manual_seed(1)
    used = [-(-keys // shape.block_size) for _, keys in batch]
    order = first_block + torch.randperm(sum(used), generator=generator)
    tables = torch.full((len(batch), max(used, default=0) + 1), -(2**30), dtype=torch.int32)
    owned = []
    for index, own in enumerate(order.split(used) if batch else []):
        tables[index, : len(own)] = own
        slots = own[:, None] * shape.block_size + torch.arange(shape.block_size)
        owned.append(slots.flatten()[: batch[index][1]])
    slots = torch.cat(owned) if owned else torch.zeros(0, dtype=torch.int64)

    def cache(dim: int) -> torch.Tensor:
        size = (first_block + sum(used), shape.block_size, shape.kv_heads, dim)
        cache = torch.full(size, float("nan"), dtype=dtype, device=device)
        values = torch.randn(
            len(slots), shape.kv_heads, dim, generator=on_device, dtype=dtype, device=device
        )
        cache.flatten(0, 1)[slots.to(device)] = values
        return cache

    num_tokens = sum(rows for rows, _ in batch) + num_padding_rows
    query = torch.randn(shape.num_heads, num_tokens, shape.head_dim, generator=generator)
    bounds = torch.tensor([0] + [rows for rows, _ in batch]).cumsum(0)
    return PagedCase(
        batch=batch,
        # As models give it: heads before tokens in memory.
        query=query.to(device, dtype).transpose(0, 1),
        key_cache=cache(shape.head_dim),
        value_cache=cache(shape.value_dim),
        layout=PagedLayout(
            block_tables=tables.to(device),
            cu_seqlens_q=bounds.to(device, torch.int32),
            seq_lens=torch.tensor([keys for _, keys in batch], dtype=torch.int32, device=device),
            block_size=shape.block_size,
            num_tokens=num_tokens,
            max_query_len=max((rows for rows, _ in batch), default=0),
            max_seq_len=max((keys for _, keys in batch), default=0),
        ),
    )


def random_trees(case: PagedCase) -> torch.Tensor:
    """Give each row a random parent among the rows before it; [num_tokens] int64."""
    generator = torch.Generator().manual_seed(case.num_rows)
    masks: list[int] = []
    for rows, _ in case.batch:
        own: list[int] = []
        for row in range(rows):
            parent = int(torch.randint(-1, row, (1,), generator=generator)) if row else -1
            own.append((own[parent] if parent >= 0 else 0) | 1 << row)
        masks += own
    masks += [0] * (case.query.shape[0] - len(masks))
    return torch.tensor(masks, dtype=torch.int64, device=case.query.device)
