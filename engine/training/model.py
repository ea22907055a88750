"""The two architectures of the demo pair and their initial weights.

Knows shapes and initialisation. Refuses to know data and optimisers.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine.training.tokenizer import END_OF_TEXT_ID, IM_END_ID, NUM_PIECES, PAD_ID

HEAD_DIM = 64
MAX_POSITIONS = 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model: layers, width, attention heads, KV heads, feed-forward width."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    feed_forward: int
    vocab: int = NUM_PIECES
    head_dim: int = HEAD_DIM


TARGET = Shape(num_layers=12, hidden=192, num_heads=3, num_kv_heads=3, feed_forward=512)
DRAFT = Shape(num_layers=1, hidden=192, num_heads=3, num_kv_heads=3, feed_forward=768)


def place(
    model: LlamaForCausalLM, device: torch.device, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """Move `model` in place to a device and a dtype, and give it back."""
    nn.Module.to(model, device=device, dtype=dtype)
    return model


def build_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """Build a float32 Llama with tied embeddings; residual outputs start at zero."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
    return model
