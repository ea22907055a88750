"""Who else computes paged attention, beside our own kernels, and what each of them can do.

A backend is asked what it supports before it is tried (`attention_choice.py`), and is handed only
that. Our own kernels do everything: trees, soft-capping, sinks and whatever a layout may be.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.paged_attention import paged_attention
from kernels.paged_layout import PagedLayout

TRITON, TORCH, FLASHINFER = "triton", "torch", "flashinfer"

# Beyond so many rows of a request a pass computes prompts; a verify pass has fewer.
MAX_VERIFY_ROWS = 64


class PassClass(enum.Enum):
    """What the shapes of a pass are like: one row per request, a few, or many."""

    DECODE = "decode"
    VERIFY = "verify"
    PREFILL = "prefill"

    @classmethod
    def of(cls, layout: PagedLayout) -> PassClass:
        """Give the class of a layout, by the rows that it allows a request."""
        if layout.max_query_len == 1:
            return cls.DECODE
        return cls.VERIFY if layout.max_query_len <= MAX_VERIFY_ROWS else cls.PREFILL


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What layers have in common that attend alike.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: elements of a query or key head.
        value_head_dim: elements of a value head.
        sliding_window: keys a row sees, itself included; None = all.
        has_softcap: scores are bounded.
        has_sinks: heads have scores that give no value.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    sliding_window: int | None = None
    has_softcap: bool = False
    has_sinks: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether a head's keys and values are alike, and nothing is done to its scores."""
        return self.head_dim == self.value_head_dim and not (self.has_softcap or self.has_sinks)

    def __str__(self) -> str:
        window = "" if self.sliding_window is None else f"/window{self.sliding_window}"
        return f"{self.num_heads}x{self.num_kv_heads}x{self.head_dim}{window}"


class AttentionBackend(Protocol):
    """Something that computes paged attention.

    Attributes:
        name: as settings and logs have it.
        passes: what it serves. Who serves decode passes serves layouts that the host does not
            know, and can be recorded in graphs.
    """

    name: str
    passes: frozenset[PassClass]

    def supports(self, kind: AttentionKind) -> bool:
        """Whether it can serve layers of a kind, in the passes that it serves."""
        ...

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
        """Do what `paged_attention` does for a layout without trees."""
        ...


class TritonAttention:
    """Our own kernels."""

    name = TRITON
    passes = frozenset(PassClass)

    def supports(self, kind: AttentionKind) -> bool:
        """Support everything; see `AttentionBackend`."""
        return True

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
        return paged_attention(
            query, key_cache, value_cache, layout, scaling=scaling, sliding_window=sliding_window
        )
