"""Torch's variable-length attention as a backend, where the installed torch reads block tables.

    out = varlen_attn(query, key_cache, value_cache, cu_seqlens_q, max_q, seqused_k, block_table)

Torch 2.11 has no block table, torch 2.13 has one, and serves it by FlashAttention 3 (2407.08608), a
package of its own. Whether it takes a model's shapes and blocks, only a trial tells.
"""

from __future__ import annotations

import importlib.util
import inspect

import torch
from torch.nn import attention

from kernels.attention_backends import TORCH, AttentionKind, PassClass
from kernels.paged_layout import PagedLayout

_FLASH_PACKAGE, _FLASH_NAME = "flash_attn_interface", "FA3"


class TorchAttention:
    """`torch.nn.attention.varlen.varlen_attn` over block tables.

    Raises:
        RuntimeError: the installed torch has none; says what is missing.
    """

    name = TORCH
    passes = frozenset(PassClass)

    def __init__(self) -> None:
        if importlib.util.find_spec("torch.nn.attention.varlen") is None:
            raise RuntimeError(f"torch {torch.__version__} has no varlen_attn")
        from torch.nn.attention.varlen import varlen_attn

        if "block_table" not in inspect.signature(varlen_attn).parameters:
            raise RuntimeError(f"varlen_attn of torch {torch.__version__} has no block_table")
        if importlib.util.find_spec(_FLASH_PACKAGE) is None:
            raise RuntimeError(f"{_FLASH_PACKAGE}, which varlen_attn needs, is not installed")
        if attention.current_flash_attention_impl() is None:
            attention.activate_flash_attention_impl(_FLASH_NAME)
        self._varlen_attn = varlen_attn

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
        """Attend; see `AttentionBackend`."""
        # Torch counts the older keys that a row sees, and ours the row itself as well.
        older = -1 if sliding_window is None else sliding_window - 1
        tables = layout.block_tables
        if layout.table_rows is not None:
            tables = tables.index_select(0, layout.table_rows)
        attended = self._varlen_attn(
            query,
            key_cache,
            value_cache,
            layout.cu_seqlens_q,
            None,
            layout.max_query_len,
            tables.shape[1] * layout.block_size,
            scale=scaling,
            window_size=(older, 0),
            enable_gqa=True,
            seqused_k=layout.seq_lens,
            block_table=tables,
        )
        assert isinstance(attended, torch.Tensor), "nothing but the output was asked for"
        return attended
