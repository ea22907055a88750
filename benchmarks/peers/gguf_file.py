"""Writes a Llama checkpoint folder as a GGUF file, with the same weights and the same token ids.

Only what the comparison needs: plain Llama (grouped heads or not, tied embeddings or not, the
default rotary embedding) with a byte-level BPE tokenizer. Anything else is refused by name. It is
run where the `gguf` package is, and needs numpy beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.peers.safetensors_arrays import Array, as_bfloat16_bits, read_float32

_TYPES = {
    "float32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "float16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "bfloat16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# The pre-tokenizer that splits digits and then as GPT-2 does; prompts come as ids anyway.
_PRE_TOKENIZER = "smollm"


def write_gguf(folder: Path, path: Path, dtype: str) -> None:
    """Write a checkpoint folder as one GGUF file.

    Args:
        folder: config, safetensors and tokenizer.
        path: of the file.
        dtype: of the matrices, `float32`, `float16` or `bfloat16`; norms stay float32.

    Raises:
        ValueError: the model or its tokenizer is of a kind that this does not write.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _check(config)
    file_type, tensor_type = _TYPES[dtype]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    for name, values in read_float32(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        _add_tensor(writer, _gguf_name(name), _permuted(name, values, config), tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotary_order(values: Array, num_heads: int) -> Array:
    """Reorder rows, so that the two halves of a head's rotary pairs lie beside each other.

    Args:
        values: `[num_heads * head_dim, hidden]`, as transformers has them.
        num_heads: of queries or of keys.
    """
    rows, hidden = values.shape
    halves = values.reshape(num_heads, 2, rows // num_heads // 2, hidden)
    return halves.swapaxes(1, 2).reshape(rows, hidden)


def _check(config: dict[str, Any]) -> None:
    if config.get("model_type") != "llama":
        raise ValueError(f"model_type: {config.get('model_type')!r}; only llama is written.")
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type: {kind!r}; only default is written.")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("attention_bias, mlp_bias: biases are not written.")


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rotary = config.get("rope_parameters") or config
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rotary.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, added = content["model"], content["added_tokens"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(content["decoder"]):
        raise ValueError(f"tokenizer: {model['type']}; only byte-level BPE is written.")
    tokens = [f"[PAD{number}]" for number in range(config["vocab_size"])]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    for text, number in model["vocab"].items():
        tokens[number], kinds[number] = text, gguf.TokenType.NORMAL
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = (
            gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for role in ("bos", "eos", "pad"):
        number = config.get(f"{role}_token_id")
        if isinstance(number, int):
            getattr(writer, f"add_{role}_token_id")(number)


def _gguf_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    prefix, _, rest = name.partition("model.layers.")
    number, _, part = rest.partition(".")
    part = part.removesuffix(".weight")
    if prefix or part not in _LAYER_NAMES:
        raise ValueError(f"{name}: no part of a plain Llama.")
    return f"blk.{number}.{_LAYER_NAMES[part]}.weight"


def _permuted(name: str, values: Array, config: dict[str, Any]) -> Array:
    heads = config["num_attention_heads"]
    if name.endswith("q_proj.weight"):
        return rotary_order(values, heads)
    if name.endswith("k_proj.weight"):
        return rotary_order(values, config.get("num_key_value_heads") or heads)
    return values


def _add_tensor(writer: Any, name: str, values: Array, kind: gguf.GGMLQuantizationType) -> None:
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        bits = as_bfloat16_bits(values)
        writer.add_tensor(name, bits.view(np.uint8), raw_dtype=kind)
