"""FlashInfer's paged attention (Ye et al., 2501.01005) as a backend, where it is installed.

It plans a pass on the host before it runs it, so it serves prompts of synchronous steps, whose
layout the host knows. A pass is planned once for all layers of a kind.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from kernels.attention_backends import FLASHINFER, AttentionKind, PassClass
from kernels.paged_layout import HostLayout, PagedLayout

# As much as FlashInfer's own documentation gives it.
_WORKSPACE_BYTES = 128 * 2**20


class FlashInferAttention:
    """FlashInfer's wrapper for prompts over a paged cache.

    Args:
        device: a CUDA device.

    Raises:
        ImportError: FlashInfer is not installed.
    """

    name = FLASHINFER
    passes = frozenset({PassClass.PREFILL})

    def __init__(self, device: torch.device) -> None:
        self._flashinfer = importlib.import_module("flashinfer")
        self._workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        # What differs between the kinds of layers: their wrapper, and what it has planned for.
        self._planned: dict[tuple[object, ...], tuple[Any, PagedLayout]] = {}

    def supports(self, kind: AttentionKind) -> bool:
        """Support what does nothing to the scores; see `AttentionBackend`."""
        return kind.is_plain

    def attend(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        layout: PagedLayout,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Attend; see `AttentionBackend`. The host knows the layout."""
        assert layout.host is not None, "only layouts that the host knows can be planned"
        heads = (query.shape[1], key_cache.shape[2], query.shape[2])
        key = (*heads, scaling, sliding_window, query.dtype)
        wrapper, planned = self._planned.get(key, (None, None))
        if wrapper is None:
            wrapper = self._flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
        if planned is not layout:
            wrapper.plan(
                layout.host.cu_seqlens_q,
                *_pages(layout.host, layout.block_size),
                *heads,
                layout.block_size,
                causal=True,
                sm_scale=scaling,
                # FlashInfer counts the older keys that a row sees, and ours the row itself as well.
                window_left=-1 if sliding_window is None else sliding_window - 1,
                q_data_type=query.dtype,
                kv_data_type=key_cache.dtype,
            )
            self._planned[key] = (wrapper, layout)
        attended: torch.Tensor = wrapper.run(query, (key_cache, value_cache))
        return attended


def _pages(host: HostLayout, block_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give where each request's blocks begin, all their blocks, and how full each last one is."""
    num_blocks = (host.seq_lens + block_size - 1) // block_size
    bounds = torch.zeros(len(num_blocks) + 1, dtype=torch.int32)
    torch.cumsum(num_blocks, 0, out=bounds[1:])
    is_used = torch.arange(host.block_tables.shape[1]) < num_blocks[:, None]
    last = host.seq_lens - (num_blocks - 1) * block_size
    return bounds, host.block_tables[is_used], last.to(torch.int32)
