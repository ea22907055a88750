"""Packs the shares of a step into the flat tensors of one forward pass.

It knows tokens, positions, slots and block tables; it refuses to know why a token is computed:
prefill, decode, verify and a draft's catch-up are all spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.attention_plan import AttentionPlan, plan_from_lists
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
        dtype: of the keys and values, where rows may be attended to one by one.
    """

    def __init__(
        self,
        block_size: int,
        max_num_tokens: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._dtype = dtype
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
        bounds = [0]
        seq_lens: list[int] = []
        rows: list[np.ndarray] = []
        end = 0
        for span in spans:
            begin, end = end, end + len(span.token_ids)
            bounds.append(end)
            seq_lens.append(span.start + end - begin)
            self._fill(span, begin, end)
            rows.append(self._offsets[end - span.num_logits : end])
        wide = (self._token_ids[:end], self._positions[:end], self._slots[:end])
        logits_rows = np.concatenate(rows)
        tables = [span.block_ids for span in spans]
        if self._device.type == "cuda":
            narrow = (
                _rectangle(tables),
                np.array(bounds, dtype=np.int32),
                np.array(seq_lens, dtype=np.int32),
            )
            return self._on_device((*wide, logits_rows), narrow)
        token_ids, positions, slots = map(torch.from_numpy, wide)
        return PackedInputs(
            token_ids,
            positions,
            slots,
            plan=plan_from_lists(
                tables,
                bounds,
                seq_lens,
                self._block_size,
                device=self._device,
                dtype=self._dtype,
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

    def _fill(self, span: Span, begin: int, end: int) -> None:
        size = self._block_size
        if end - begin == 1:
            # Most spans are one token, for which arrays take longer than numbers.
            self._token_ids[begin] = span.token_ids[0]
            self._positions[begin] = span.start
            self._slots[begin] = span.block_ids[span.start // size] * size + span.start % size
            return
        positions = self._positions[begin:end]
        np.add(self._offsets[: end - begin], span.start, out=positions)
        self._token_ids[begin:end] = span.token_ids
        table = np.array(span.block_ids, dtype=np.int64)
        self._slots[begin:end] = table[positions // size] * size + positions % size


def _rectangle(tables: Sequence[list[int]]) -> np.ndarray:
    """Write block tables as [num_seqs, longest], int32; 0 behind the end of each."""
    padded = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded
