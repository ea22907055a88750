"""Runs one model over its part of the paged KV cache; knows nothing of requests.

The target and the draft each have a runner; both read the same block tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.kv_cache.storage import KVCacheStorage
from engine.model.forward import forward_packed
from engine.model.loader import LoadedModel
from engine.runner.chain_passes import ChainPasses, chain_passes
from engine.runner.input_batch import InputBatch, Span


class ModelRunner:
    """A loaded model with its keys and values.

    Args:
        loaded: the model.
        num_blocks: blocks of the shared pool.
        block_size: tokens per block.
        max_num_tokens: tokens of one pass at most.
        storage: keys and values that another runner has too; None = its own.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        num_blocks: int,
        block_size: int,
        max_num_tokens: int,
        storage: KVCacheStorage | None = None,
    ) -> None:
        self.loaded = loaded
        self._block_size = block_size
        self.storage = storage or KVCacheStorage(
            loaded.layers, num_blocks, block_size, loaded.dtype, loaded.device
        )
        self.input_batch = InputBatch(block_size, max_num_tokens, loaded.device, loaded.dtype)

    def chain_passes(self, spans: Sequence[Span], num_passes: int) -> ChainPasses | None:
        """Lay out passes of one token per span, each behind the one before; see there."""
        return chain_passes(self.loaded, self.storage, spans, num_passes, self._block_size)

    def execute(
        self, spans: Sequence[Span], *, last_token_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the spans' keys and values, and the logits that they ask for.

        Args:
            spans: what to compute.
            last_token_ids: [num_spans], int64; when given, every span is one token and these
                replace their `token_ids`, so that a token sampled on the device stays there.

        Returns:
            logits: [num_rows, vocab], float32, span-major.
        """
        inputs = self.input_batch.build(spans)
        token_ids = inputs.token_ids if last_token_ids is None else last_token_ids
        return forward_packed(
            self.loaded,
            self.storage,
            token_ids,
            inputs.positions,
            inputs.slot_mapping,
            inputs.plan,
            inputs.logits_rows,
        )
