"""Passes of one row per request, each a token behind the pass before, laid out only once.

So go a draft's passes: who drafts, their blocks, and where what is computed goes are known when a
chain begins, and only tokens are not. Where all of a model is one call (`native_layers.py`), laying
a pass out takes longer than the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.kv_cache.storage import KVCacheStorage
from engine.model.loader import LoadedModel
from engine.runner.input_batch import Span
from kernels.paged_attention_cpu import AttendedRows


class ChainPasses:
    """Passes over chains that all go on; where one ends, new ones are made for the others.

    Args:
        run: runs a pass over what the arrays hold.
        token_ids: [num_rows] int64.
        positions: [num_rows] int64.
        slots: [num_rows] int64.
        attended: the rows.
        block_size: tokens per block.
    """

    def __init__(
        self,
        run: Callable[[], torch.Tensor],
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        attended: AttendedRows,
        block_size: int,
    ) -> None:
        self._run = run
        self._token_ids = token_ids
        self._positions, self._slots = positions.numpy(), slots.numpy()
        self._attended, self._rows = attended, np.arange(attended.num_rows)
        self._block_size = block_size

    def run(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Compute one more token of each chain.

        Args:
            token_ids: [num_rows] int64.

        Returns:
            logits: [num_rows, vocab] float32, until the next pass.
        """
        self._token_ids.copy_(token_ids)
        size, positions = self._block_size, self._positions
        blocks = self._attended.tables[self._rows, positions // size]
        np.add(blocks * np.int64(size), positions % size, out=self._slots)
        logits = self._run()
        self._positions += 1
        self._attended.visible[:] += 1
        return logits


@torch.inference_mode()
def chain_passes(
    loaded: LoadedModel,
    storage: KVCacheStorage,
    spans: Sequence[Span],
    num_passes: int,
    block_size: int,
) -> ChainPasses | None:
    """Lay out passes that begin with spans of one token each.

    Args:
        loaded: the model.
        storage: its caches.
        spans: of the first pass; their tokens are not read.
        num_passes: passes at most; the spans' blocks cover them.
        block_size: tokens per block.

    Returns:
        The passes; None where this model's are not one call.
    """
    if loaded.native is None:
        return None
    starts = [span.start for span in spans]
    rows = list(range(len(spans)))
    attended = AttendedRows(
        rows, [start + 1 for start in starts], rows, [s.block_ids for s in spans], block_size
    )
    token_ids, slots = (torch.empty(len(spans), dtype=torch.int64) for _ in range(2))
    positions = torch.tensor(starts, dtype=torch.int64)
    last = max(starts) + num_passes - 1
    run = loaded.native.prepare(storage, token_ids, positions, slots, attended, last)
    if run is None:
        return None
    return ChainPasses(run, token_ids, positions, slots, attended, block_size)
