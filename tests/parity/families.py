"""Tiny random models of every family that must give the same tokens as `transformers.generate`.

Windows are short enough to matter within a test's prompts, and weights are drawn wide enough that
attention is peaked, logits are far from tied, and greedy text does not loop at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 160
MAX_MODEL_LEN = 512
HIDDEN_SIZE = 32

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_MODEL_LEN,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def _config(config_class: type[PreTrainedConfig], **own: Any) -> PreTrainedConfig:
    return config_class(**{**_COMMON, **own})


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: _config(LlamaConfig),
    "mistral": lambda: _config(MistralConfig, head_dim=8, sliding_window=12),
    "qwen2": lambda: _config(
        Qwen2Config, use_sliding_window=True, sliding_window=10, layer_types=_ALTERNATING
    ),
    "qwen3": lambda: _config(Qwen3Config, head_dim=16),
    "gemma2": lambda: _config(
        Gemma2Config,
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=9,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=20.0,
        layer_types=_ALTERNATING,
    ),
    "gemma3": lambda: _config(
        Gemma3TextConfig,
        head_dim=16,
        query_pre_attn_scalar=10,
        sliding_window=8,
        layer_types=_ALTERNATING,
    ),
    "phi3": lambda: _config(Phi3Config, sliding_window=14),
    "olmo2": lambda: _config(Olmo2Config, num_key_value_heads=4),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=MAX_MODEL_LEN,
        n_embd=HIDDEN_SIZE,
        n_layer=3,
        n_head=4,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "gpt_oss": lambda: _config(
        GptOssConfig,
        head_dim=8,
        sliding_window=11,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=_ALTERNATING,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": MAX_MODEL_LEN // 4,
            "truncate": False,
        },
    ),
    "mixtral": lambda: _config(MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: _config(
        Qwen3MoeConfig,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
}


def build_family(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Build one family's tiny model, float32 and with its own eager attention.

    The same name and seed give the same weights, so a test can hold a model for the engine
    beside an untouched one for the reference.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        FAMILIES[name](), attn_implementation="eager", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(1.6 * noise / HIDDEN_SIZE**0.5)
        model.get_input_embeddings().weight.mul_(HIDDEN_SIZE**0.5)
    return model.eval()
