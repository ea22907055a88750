"""Paged attention over a `PagedLayout` in plain torch: what runs where Triton does not.

Requests are padded to the rows and keys of the longest, and scores are computed whole. Knows
tensors only, as the kernels do; of their values it reads, on the CPU, how long the longest is.
"""

from __future__ import annotations

import torch

from kernels.paged_layout import PagedLayout


def paged_attention_over_layout(
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
    """Do what `paged_attention` does; arguments as there.

    Returns:
        [num_tokens, num_heads, value_head_dim], the query's dtype; padding rows hold anything.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_requests, kv_heads = layout.seq_lens.shape[0], key_cache.shape[2]
    if num_tokens == 0 or num_requests == 0:
        return query.new_zeros(num_tokens, num_heads, value_cache.shape[3])
    kv_lens = layout.seq_lens.long()
    bounds = layout.cu_seqlens_q.long()
    query_lens = bounds.diff()
    num_rows = max(1, int(query_lens.max()))
    num_keys = max(1, int(kv_lens.max()))

    rows = bounds[:-1, None] + torch.arange(num_rows, device=query.device)
    padded = query[rows.clamp(max=num_tokens - 1)]  # [num_requests, num_rows, heads, dim]
    folded = padded.view(num_requests, num_rows, kv_heads, num_heads // kv_heads, head_dim)
    slots = _slots(layout, kv_lens, num_keys)
    key = key_cache.flatten(0, 1)[slots]  # [num_requests, num_keys, kv_heads, dim]
    value = value_cache.flatten(0, 1)[slots]

    scores = torch.einsum("brhgd,bkhd->bhgrk", folded * scaling, key).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    is_visible = visible_keys(layout, rows.clamp(max=num_tokens - 1), num_keys, sliding_window)
    scores.masked_fill_(~is_visible[:, None, None], float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(1, kv_heads, -1, 1, 1)
        scores = torch.cat([scores, sink.expand(*scores.shape[:1], -1, -1, num_rows, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :num_keys].to(value.dtype)
    attended = torch.einsum("bhgrk,bkhd->brhgd", weights, value).reshape(
        num_requests, num_rows, num_heads, value.shape[3]
    )
    tokens = torch.arange(num_tokens, device=query.device)
    request = torch.searchsorted(bounds[1:], tokens, right=True).clamp_(max=num_requests - 1)
    return attended[request, (tokens - bounds[request]).clamp_(max=num_rows - 1)]


def visible_keys(
    layout: PagedLayout, rows: torch.Tensor, num_keys: int, sliding_window: int | None
) -> torch.Tensor:
    """Return [num_requests, num_rows, num_keys] bool: which keys each row sees.

    Args:
        layout: of this pass.
        rows: [num_requests, num_rows] int64, the packed row behind each row of a request.
        num_keys: keys to look at.
        sliding_window: keys a row sees, itself included; None = all.
    """
    kv_lens = layout.seq_lens.long()[:, None, None]
    first_new = kv_lens - layout.cu_seqlens_q.long().diff()[:, None, None]
    keys = torch.arange(num_keys, device=rows.device)
    row_numbers = torch.arange(rows.shape[1], device=rows.device)[None, :, None]
    if layout.tree_masks is None:
        positions = first_new + row_numbers
        is_visible = keys <= positions
        if sliding_window is not None:
            is_visible &= keys > positions - sliding_window
        return is_visible & (keys < kv_lens)
    trees = layout.tree_masks[rows][:, :, None]
    marks = (trees >> (keys - first_new).clamp(0, 62)) & 1 != 0
    is_older = keys < first_new
    if sliding_window is not None:
        bits = (trees >> torch.arange(63, device=rows.device)) & 1
        depths = bits.sum(dim=2, keepdim=True) - 1
        is_older = is_older & (keys > first_new + depths - sliding_window)
    return is_older | (marks & (keys >= first_new) & (keys < kv_lens))


def _slots(layout: PagedLayout, kv_lens: torch.Tensor, num_keys: int) -> torch.Tensor:
    """Return [num_requests, num_keys] int64; past a request's keys, its last key's slot again."""
    keys = torch.arange(num_keys, device=kv_lens.device)
    # A masked key still meets its value with weight 0, and 0 * nan would be nan.
    own = torch.minimum(keys, kv_lens[:, None] - 1).clamp_(min=0)
    tables = layout.block_tables
    if layout.table_rows is not None:
        tables = tables.index_select(0, layout.table_rows)
    blocks = tables.long().gather(1, own // layout.block_size)
    blocks = torch.where(kv_lens[:, None] > 0, blocks, 0)
    return blocks * layout.block_size + own % layout.block_size
