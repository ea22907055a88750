"""Makes lanes for drafters that are loaded, each with the KV cache that its requests need."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from benchmarks.drafters import LoadedDrafter
from benchmarks.side_by_side import Lane, make_lane
from engine.config import EngineConfig
from engine.kv_cache.storage import bytes_per_block
from engine.model_pair import ModelPair


def lane_name(draft_tokens: int | None) -> str:
    """Name a lane by its number of drafts, as `--speculation` says it."""
    if draft_tokens is None:
        return "auto"
    return str(draft_tokens) if draft_tokens else "off"


def lane_for(
    loaded: LoadedDrafter, draft_tokens: int | None, *, concurrency: int, longest: int
) -> Lane:
    """Make a lane.

    Args:
        loaded: who drafts, and all settings.
        draft_tokens: static number of drafts; 0 = off, None = auto.
        concurrency: requests in flight.
        longest: tokens of prompt and answer at most.
    """
    config = loaded.config
    if draft_tokens == 0:
        # Nobody drafts, so nobody is warned of, and there is nothing that dice could accept.
        speculation = replace(config.speculation, draft=None, synthetic_acceptance=None)
        config = replace(config, speculation=speculation)
    config = _bounded(config, loaded.models, longest, concurrency)
    draft, name = config.speculation.draft, lane_name(draft_tokens)
    return make_lane(name, config, loaded.models, draft, draft_tokens, concurrency)


def free_memory() -> None:
    """Give back what lanes held that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bounded(
    config: EngineConfig, models: ModelPair, longest: int, concurrency: int
) -> EngineConfig:
    """Give a lane the KV cache that its requests need, as many engines share the memory.

    Every prompt is computed anew: with few prompts in turn a prefix cache would find them all.
    """
    size = config.cache.block_size
    blocks = (-(-longest // size) + 1) * concurrency + 1
    loaded = [model for model in (models.target, models.draft) if model is not None]
    block_bytes = sum(bytes_per_block(m.layers, size, m.dtype) for m in loaded)
    cache = replace(config.cache, kv_cache_memory=str(blocks * block_bytes), prefix_caching=False)
    return replace(config, cache=cache, model=replace(config.model, max_model_len=longest))
