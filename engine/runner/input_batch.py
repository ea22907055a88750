"""Packs the shares of a step into the flat tensors of one forward pass.

It knows tokens, positions, slots and block tables; it refuses to know why a token is computed:
prefill, decode, verify and a draft's catch-up are all spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.paged_attention import AttentionPlan, plan_paged_attention
from kernels.paged_layout import HostLayout, PagedLayout

# Sections of one copy to a device begin where its vector loads may.
_SECTION_BYTES = 16


@dataclass(slots=True)
class Span:
    """Consecutive tokens of one request, computed by one pass.

    Attributes:
        token_ids: the tokens.
        start: position of the first one.
        block_ids: the request's block table.
        num_logits: trailing tokens whose logits are wanted.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: list[int]
    num_logits: int


@dataclass(slots=True)
class PackedInputs:
    """One forward pass over all spans, packed without padding.

    Attributes:
        token_ids: [num_tokens], int64.
        positions: [num_tokens], int64.
        slot_mapping: [num_tokens], int64; where each token's keys and values go.
        plan: how attention reads the block tables.
        logits_rows: [num_rows], int64; the tokens whose logits are wanted, span-major.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    plan: AttentionPlan | PagedLayout
    logits_rows: torch.Tensor


class InputBatch:
    """Builds `PackedInputs`, reusing its host buffers from step to step.

    Args:
        block_size: tokens per block.
        max_num_tokens: tokens of one pass at most.
        device: where the tensors go.
    """

    def __init__(self, block_size: int, max_num_tokens: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._token_ids = np.empty(max_num_tokens, dtype=np.int64)
        self._positions = np.empty(max_num_tokens, dtype=np.int64)
        self._slots = np.empty(max_num_tokens, dtype=np.int64)
        self._offsets = np.arange(max_num_tokens, dtype=np.int64)

    def build(self, spans: Sequence[Span]) -> PackedInputs:
        """Pack `spans`, in order.

        Returns:
            Inputs of one pass; their tensors are valid until the next call.
        """
        num_seqs = len(spans)
        tables = np.zeros((num_seqs, max(len(s.block_ids) for s in spans)), dtype=np.int32)
        starts = np.zeros(num_seqs + 1, dtype=np.int32)
        seq_lens = np.empty(num_seqs, dtype=np.int32)
        rows: list[np.ndarray] = []
        end = 0
        for index, span in enumerate(spans):
            begin, end = end, end + len(span.token_ids)
            tables[index, : len(span.block_ids)] = span.block_ids
            starts[index + 1] = end
            seq_lens[index] = span.start + end - begin
            self._fill(span, tables[index], begin, end)
            rows.append(self._offsets[end - span.num_logits : end])
        wide = (self._token_ids[:end], self._positions[:end], self._slots[:end])
        logits_rows = np.concatenate(rows)
        if self._device.type == "cuda":
            return self._on_device((*wide, logits_rows), (tables, starts, seq_lens))
        token_ids, positions, slots = map(torch.from_numpy, wide)
        return PackedInputs(
            token_ids,
            positions,
            slots,
            plan=plan_paged_attention(
                torch.from_numpy(tables),
                torch.from_numpy(starts),
                torch.from_numpy(seq_lens),
                self._block_size,
            ),
            logits_rows=torch.from_numpy(logits_rows),
        )

    def _on_device(
        self, wide: Sequence[np.ndarray], narrow: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> PackedInputs:
        """Copy int64 and int32 arrays to the device, all of a kind at once and without waiting."""
        tables_here, starts, seq_lens = narrow
        token_ids, positions, slots, logits_rows = self._copy(wide)
        tables, cu_seqlens_q, lens = self._copy(narrow)
        layout = PagedLayout(
            block_tables=tables,
            cu_seqlens_q=cu_seqlens_q,
            seq_lens=lens,
            block_size=self._block_size,
            num_tokens=int(starts[-1]),
            max_query_len=int(np.diff(starts).max()),
            max_seq_len=int(seq_lens.max()),
            host=HostLayout(*map(torch.from_numpy, (tables_here, starts, seq_lens))),
        )
        return PackedInputs(token_ids, positions, slots, layout, logits_rows)

    def _copy(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        size = _SECTION_BYTES // arrays[0].itemsize
        ends = np.cumsum([-(-array.size // size) * size for array in arrays]).tolist()
        packed = np.empty(ends[-1], dtype=arrays[0].dtype)
        starts = [0, *ends[:-1]]
        for start, array in zip(starts, arrays, strict=True):
            packed[start : start + array.size] = array.ravel()
        there = torch.from_numpy(packed).pin_memory().to(self._device, non_blocking=True)
        return [
            there[start : start + array.size].view(array.shape)
            for start, array in zip(starts, arrays, strict=True)
        ]

    def _fill(self, span: Span, table: np.ndarray, begin: int, end: int) -> None:
        positions = self._positions[begin:end]
        np.add(self._offsets[: end - begin], span.start, out=positions)
        self._token_ids[begin:end] = span.token_ids
        self._slots[begin:end] = (
            table[positions // self._block_size] * np.int64(self._block_size)
            + positions % self._block_size
        )
