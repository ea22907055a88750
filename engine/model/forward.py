"""One packed forward pass of a loaded model over its paged cache; nothing of requests."""

from __future__ import annotations

import torch

from engine.kv_cache.storage import KVCacheStorage
from engine.model.attention import AttentionContext, use_attention_context
from engine.model.loader import LoadedModel
from kernels.paged_attention import AttentionPlan
from kernels.paged_layout import PagedLayout


@torch.inference_mode()
def forward_packed(
    loaded: LoadedModel,
    storage: KVCacheStorage,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    plan: AttentionPlan | PagedLayout,
    logits_rows: torch.Tensor,
    *,
    as_float: bool = True,
    is_padded: bool = False,
) -> torch.Tensor:
    """Compute the packed tokens of many requests, and the logits of some of their rows.

    Args:
        loaded: the model.
        storage: its caches; the tokens' keys and values are written there.
        token_ids: [num_tokens] int64, the requests' new tokens one after the other.
        positions: [num_tokens] int64, each token's position in its request.
        slot_mapping: [num_tokens] int64, each token's slot in the caches.
        plan: how attention finds the same rows' keys.
        logits_rows: [num_rows] int64, ascending, no row twice: rows whose logits are wanted.
        as_float: whether the logits are wanted in float32, or as the model gives them.
        is_padded: whether `logits_rows` may name a row twice.

    Returns:
        [num_rows, vocab], float32 or the model's own type.
    """
    if loaded.native is not None:
        found = loaded.native.forward(
            storage, token_ids, positions, slot_mapping, plan, logits_rows
        )
        if found is not None:
            return found if as_float else found.to(loaded.dtype)
    keep_all = not is_padded and logits_rows.shape[0] == token_ids.shape[0]
    keywords = {} if keep_all or not loaded.keeps_logits else {"logits_to_keep": logits_rows}
    context = AttentionContext(plan, slot_mapping, storage, loaded.attend, loaded.native)
    with use_attention_context(context):
        logits: torch.Tensor = loaded.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            **keywords,
        ).logits[0]
    if not keep_all and not loaded.keeps_logits:
        logits = logits.index_select(0, logits_rows)
    return logits.float() if as_float else logits
