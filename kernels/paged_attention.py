"""Causal attention of packed query rows over a paged KV cache.

For row i of a request with q rows and L keys, h a query head and g its KV head:

    s_j = scaling * <query[i, h], key[j, g]>        for j < L - q + i + 1
    s_j = softcap * tanh(s_j / softcap)             with soft-capping (Gemma-2, 2408.00118, sec. 2)
    j > L - q + i - sliding_window                  with a sliding window (Mistral, 2310.06825)
    p   = softmax([s, sinks[h]])[:-1]               with sinks (gpt-oss, 2508.10925, sec. 2)
    out[i, h] = sum_j p_j * value[j, g]

One signature for decode (q = 1), verify and chunked prefill; nothing of queues or models. Rows of
a layout with tree masks see of the request's rows those that their mask names, and have the
position L - q + depth, depth being the number of rows they see less themselves; a window counts
from there, and bounds older keys only.
Shapes: query [T, H, D], key_cache [num_blocks, block_size, Hkv, D], value_cache [..., Dv],
sinks [H]; the result is [T, H, Dv]. Softmax in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from kernels.attention_plan import (
    MAX_BATCHED_ROWS,
    AttentionPlan,
    KeySpan,
    RowGroup,
    plan_paged_attention,
)
from kernels.paged_attention_cpu import attend_rows
from kernels.paged_attention_over_layout import paged_attention_over_layout
from kernels.paged_layout import PagedLayout

__all__ = [
    "AttentionPlan",
    "PagedLayout",
    "paged_attention",
    "paged_attention_reference",
    "plan_paged_attention",
]


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: AttentionPlan | PagedLayout,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from packed rows to the cached keys of their requests.

    Args:
        query: [num_tokens, num_heads, head_dim]; any strides, last dimension dense.
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        value_cache: [num_blocks, block_size, num_kv_heads, value_head_dim], contiguous.
        plan: of this step, or its layout, which on a GPU goes to the Triton kernels; the rows' own
            keys and values are already in the cache.
        scaling: factor on the dot products.
        sliding_window: keys a row sees, itself included; none = all.
        softcap: bound of the scores; none = unbounded.
        sinks: [num_heads], a score per head that takes weight and gives no value.

    Returns:
        [num_tokens, num_heads, value_head_dim], the query's dtype.

    Raises:
        ValueError: the query's rows or heads do not fit the plan or the cache, or a tree mask.
    """
    num_tokens, num_heads, _ = query.shape
    if num_tokens != plan.num_tokens:
        raise ValueError(f"{num_tokens} query rows, but the plan has {plan.num_tokens}.")
    if num_heads % key_cache.shape[2]:
        raise ValueError(f"{num_heads} heads are no multiple of {key_cache.shape[2]} KV heads.")
    if isinstance(plan, PagedLayout):
        return _attend_layout(
            query, key_cache, value_cache, plan,
            scaling=scaling, sliding_window=sliding_window, softcap=softcap, sinks=sinks,
        )  # fmt: skip
    extras = (scaling, sliding_window, softcap, sinks)
    if plan.attended is None and len(plan.groups) == 1 and plan.groups[0].padding is None:
        return _attend_group(query, key_cache, value_cache, plan.groups[0], *extras)
    output = query.new_empty(num_tokens, num_heads, value_cache.shape[3])
    if plan.attended is not None:
        attend_rows(
            query, key_cache, value_cache, plan.attended, output,
            scaling=scaling, sliding_window=sliding_window, softcap=softcap, sinks=sinks,
        )  # fmt: skip
    for group in plan.groups:
        if group.padding is None:
            num_rows = group.num_requests * group.num_rows
            rows = query.narrow(0, group.first_row, num_rows)
            attended = _attend_group(rows, key_cache, value_cache, group, *extras)
            output.narrow(0, group.first_row, num_rows).copy_(attended)
        else:
            rows = query.index_select(0, group.padding.padded_rows)
            attended = _attend_group(rows, key_cache, value_cache, group, *extras)
            attended = attended.index_select(0, group.padding.unpad)
            output.index_copy_(0, group.padding.rows, attended)
    return output


def _attend_layout(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    layout: PagedLayout,
    **extras: Any,
) -> torch.Tensor:
    """Attend by the layout's device; the Triton kernels are imported only where they run."""
    if layout.tree_masks is not None and layout.max_query_len > 63:
        raise ValueError(f"{layout.max_query_len} rows per request; a tree mask has 63 bits.")
    if not query.is_cuda:
        return paged_attention_over_layout(query, key_cache, value_cache, layout, **extras)
    from kernels.paged_attention_triton import paged_attention_on_device

    return paged_attention_on_device(query, key_cache, value_cache, layout, **extras)


def _attend_group(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    group: RowGroup,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend for one group; query [num_requests * num_rows, H, D] -> [same, H, Dv]."""
    span = group.span(sliding_window)
    batch, rows, kv_heads = group.num_requests, group.num_rows, key_cache.shape[2]
    heads_per_kv = query.shape[1] // kv_heads
    key = span.gather(key_cache, batch).transpose(1, 2)  # [batch, kv_heads, keys, dim]
    value = span.gather(value_cache, batch).transpose(1, 2)
    folded = query.view(batch, rows, kv_heads, heads_per_kv, query.shape[2])
    folded = folded.permute(0, 2, 3, 1, 4)  # [batch, kv_heads, heads_per_kv, rows, dim]
    if softcap is not None or sinks is not None:
        attended = _attend_scores(folded, key, value, span, scaling, softcap, sinks)
    elif rows > MAX_BATCHED_ROWS:
        attended = _attend_many_rows(folded[0], key[0], value[0], span, scaling)
    else:
        attended = F.scaled_dot_product_attention(
            folded.reshape(batch, kv_heads, heads_per_kv * rows, query.shape[2]),
            key,
            value,
            attn_mask=span.bias(query.dtype, heads_per_kv),
            scale=scaling,
        )
    attended = attended.reshape(batch, kv_heads, heads_per_kv, rows, value.shape[3])
    attended = attended.permute(0, 3, 1, 2, 4).contiguous()  # some models view it afterwards
    return attended.view(batch * rows, query.shape[1], value.shape[3])


def _attend_many_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    span: KeySpan,
    scaling: float,
) -> torch.Tensor:
    """Attend for one request; query [Hkv, G, rows, D], key and value [Hkv, keys, D].

    Query heads of one KV head are a broadcast dimension here, so that the mask stays
    [rows, keys] and keys are not copied per head.
    """
    shape = (*query.shape[:2], span.num_keys)
    return F.scaled_dot_product_attention(
        query,
        key.unsqueeze(1).expand(*shape, key.shape[2]),
        value.unsqueeze(1).expand(*shape, value.shape[2]),
        attn_mask=None if span.is_causal else span.bias(query.dtype, 1),
        is_causal=span.is_causal,
        scale=scaling,
    )


def _attend_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    span: KeySpan,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend with the scores at hand, for what fused attention cannot do.

    Args:
        query: [batch, kv_heads, heads_per_kv, rows, dim].
        key: [batch, kv_heads, keys, dim].
        value: [batch, kv_heads, keys, value_dim].
    """
    batch, kv_heads, heads_per_kv, rows, dim = query.shape
    folded = query.reshape(batch, kv_heads, heads_per_kv * rows, dim)
    scores = torch.matmul(folded * scaling, key.transpose(2, 3)).float()
    if softcap is not None:
        scores = torch.tanh(scores.div_(softcap)).mul_(softcap)
    scores = scores.view(batch, kv_heads, heads_per_kv, rows, span.num_keys)
    bias = span.bias(torch.float32, 1)
    if bias is not None:
        scores += bias.unsqueeze(2)
    if sinks is not None:
        sink = sinks.float().view(1, kv_heads, heads_per_kv, 1, 1)
        scores = torch.cat([scores, sink.expand(batch, -1, -1, rows, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : span.num_keys].to(value.dtype)
    weights = weights.reshape(batch, kv_heads, heads_per_kv * rows, span.num_keys)
    return torch.matmul(weights, value)


def paged_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    tree_masks: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Do what `paged_attention` does, one row at a time, in `dtype`; the oracle of the tests.

    Args:
        block_tables: [num_requests, max_blocks]; `cu_seqlens_q` and `seq_lens` as in the plan.
        tree_masks: as in a layout.
        dtype: float32 or float64, of the arithmetic and the result.
    """
    num_tokens, num_heads, _ = query.shape
    block_size, kv_heads = key_cache.shape[1], key_cache.shape[2]
    output = torch.zeros(num_tokens, num_heads, value_cache.shape[3], dtype=dtype)
    bounds = cu_seqlens_q.tolist()
    for index, kv_len in enumerate(seq_lens.tolist()):
        slots = [
            int(block_tables[index, key // block_size]) * block_size + key % block_size
            for key in range(kv_len)
        ]
        keys = key_cache.flatten(0, 1)[slots].to(dtype)  # [kv_len, kv_heads, dim]
        values = value_cache.flatten(0, 1)[slots].to(dtype)
        for row in range(bounds[index], bounds[index + 1]):
            first_new = kv_len - (bounds[index + 1] - bounds[index])
            seen_rows = list(range(row - bounds[index] + 1))
            if tree_masks is not None:
                mask = int(tree_masks[row])
                seen_rows = [j for j in range(kv_len - first_new) if mask >> j & 1]
            position = first_new + len(seen_rows) - 1
            first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            seen = list(range(first, first_new)) + [first_new + j for j in seen_rows]
            if tree_masks is None:
                seen = [key for key in seen if key >= first]
            for head in range(num_heads):
                kv_head = head // (num_heads // kv_heads)
                scores = keys[seen, kv_head] @ query[row, head].to(dtype) * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head].to(dtype).view(1)])
                weights = torch.softmax(scores, dim=0)[: len(seen)]
                output[row, head] = weights @ values[seen, kv_head]
    return output
