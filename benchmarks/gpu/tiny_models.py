"""Tiny models in the place of the real shapes, for tests of the harness alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.model.loader import LoadedModel, from_model

_VOCAB = 128
_DRAFT = "tiny-draft"
TINY_SHAPES = ("tiny", _DRAFT)


def tiny_model(shape: str, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Make a target, or a draft of fewer layers and tokens."""
    is_draft = shape == _DRAFT
    config = LlamaConfig(
        vocab_size=_VOCAB - 32 if is_draft else _VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1 if is_draft else 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    return from_model(model.to(device=device, dtype=dtype), name=shape)
