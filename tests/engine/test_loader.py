"""Loading finds what layers store, honours the options, and refuses by name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    DogeConfig,
    Gemma3Config,
    GPTJConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2MoeConfig,
    T5Config,
    ViTConfig,
)

from engine.errors import ModelLoadError, ModelNotSupportedError
from engine.kv_cache.storage import KVCacheStorage, LayerKVSpec, bytes_per_block
from engine.model.attention import (
    PAGED_ATTENTION,
    ProbeContext,
    attention_forward,
    use_attention_context,
)
from engine.model.loader import from_model, load_model
from engine.model.self_check import check_model
from tests.parity.families import FAMILIES, MAX_MODEL_LEN, VOCAB_SIZE, build_family

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(config: PreTrainedConfig) -> Any:
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with two end-of-sequence tokens in its generation config."""
    model = build_family("qwen3")
    model.generation_config.eos_token_id = [5, 9]
    model.save_pretrained(tmp_path)
    return tmp_path


def test_loads_a_local_folder(folder: Path) -> None:
    loaded = load_model(str(folder), device=CPU)
    assert loaded.name == str(folder)
    assert loaded.vocab_size == VOCAB_SIZE
    assert loaded.layers == [LayerKVSpec(num_kv_heads=2, head_dim=16)] * 3
    assert loaded.max_model_len == MAX_MODEL_LEN
    assert loaded.eos_token_ids == (5, 9)
    assert (loaded.dtype, loaded.device) == (torch.float32, CPU)
    assert loaded.model.config._attn_implementation == PAGED_ATTENTION
    assert not loaded.model.training
    same = build_family("qwen3").state_dict()
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, same[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_holds_weights_in_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    loaded = load_model(str(folder), device=CPU, dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype)
    numbers = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert loaded.weight_bytes >= numbers * loaded.dtype.itemsize


def test_random_weights_have_the_checkpoints_shapes(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    loaded = load_model(str(folder), device=CPU, load_weights=False)
    shapes = {name: weight.shape for name, weight in loaded.model.state_dict().items()}
    assert shapes == {n: w.shape for n, w in build_family("qwen3").state_dict().items()}


def test_missing_folder_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere: its configuration cannot be loaded"):
        load_model(str(tmp_path / "nowhere"), device=CPU)


def test_contradictory_config_is_a_load_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": "many"}))
    with pytest.raises(ModelLoadError, match="its configuration cannot be loaded"):
        load_model(str(folder), device=CPU)


def test_missing_weights_are_a_load_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="the model cannot be loaded"):
        load_model(str(folder), device=CPU)


def test_pickled_weights_are_refused_by_name_unless_they_are_allowed(folder: Path) -> None:
    weights = build_family("qwen3").state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    # Whatever else lies there, safetensors are taken.
    assert load_model(str(folder), device=CPU).vocab_size == VOCAB_SIZE
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"Pickles \(\.bin\).*--allow-pickle"):
        load_model(str(folder), device=CPU)
    loaded = load_model(str(folder), device=CPU, allow_pickle=True)
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", [None, None, None]),
        ("mistral", [12, 12, 12]),
        ("qwen2", [10, None, 10]),
        ("gemma2", [9, None, 9]),
        ("gemma3", [8, None, 8]),
        ("phi3", [14, 14, 14]),
        ("gpt_oss", [11, None, 11]),
    ],
)
def test_finds_each_layers_window(family: str, windows: list[int | None]) -> None:
    assert from_model(build_family(family)).sliding_windows == windows


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_its_limits(family: str) -> None:
    loaded = from_model(build_family(family))
    assert (loaded.max_model_len, loaded.vocab_size) == (MAX_MODEL_LEN, VOCAB_SIZE)
    assert loaded.eos_token_ids == ()
    assert loaded.keeps_logits


def test_end_of_sequence_falls_back_to_the_config() -> None:
    model = build(LlamaConfig(**TINY))
    model.generation_config.eos_token_id = None
    assert from_model(model).eos_token_ids == (2,)


def test_value_heads_may_be_narrower_than_keys() -> None:
    config = DeepseekV3Config(
        **{**TINY, "num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
    )  # fmt: skip
    loaded = from_model(build(config))
    spec = LayerKVSpec(num_kv_heads=4, head_dim=16, value_head_dim=12)
    assert loaded.layers == [spec, spec]
    assert bytes_per_block(loaded.layers, 8, torch.float16) == 2 * 8 * 4 * (16 + 12) * 2
    storage = KVCacheStorage(loaded.layers, 3, 8, torch.float16, CPU)
    assert storage.value_caches[1].shape == (3, 8, 4, 12)
    caches = [*storage.key_caches, *storage.value_caches]
    assert sum(cache.nbytes for cache in caches) == 3 * bytes_per_block(
        loaded.layers, 8, torch.float16
    )


UNSERVED: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "BertSelfAttention is not causal attention": (BertConfig, {}),
    "MambaForCausalLM": (MambaConfig, {}),
    "GPTJForCausalLM: its attention does not go through transformers' AttentionInterface": (
        GPTJConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    ),
    "of 2 layers, attention was called for layers [1]": (
        Lfm2Config,
        {"layer_types": ["conv", "full_attention"]},
    ),
    "of 2 layers, attention was called for layers [0, 0, 1, 1]": (DiffLlamaConfig, {}),
    "DogeForCausalLM: layer 0 makes a mask of its own": (DogeConfig, {}),
    "Qwen2MoeForCausalLM: layer 0 masks other keys than its attention call says": (
        Qwen2MoeConfig,
        {"use_sliding_window": True, "sliding_window": 8, "num_experts": 4, "head_dim": 8},
    ),
    "layer 0 masks other keys than its attention call says (sliding_window=None)": (
        Llama4TextConfig,
        {"attention_chunk_size": 16, "head_dim": 8, "num_local_experts": 2, "moe_layers": []},
    ),
}


@pytest.mark.parametrize("message", UNSERVED)
def test_refuses_by_name_what_it_cannot_serve(message: str) -> None:
    config_class, own = UNSERVED[message]
    model = build(config_class(**{**TINY, **own}))
    with pytest.raises(ModelNotSupportedError, match=re.escape(message)):
        from_model(model)


def test_refuses_a_context_without_a_limit() -> None:
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ModelNotSupportedError, match="has no max_position_embeddings"):
        from_model(build(config))


def test_refuses_encoder_decoders_before_reading_weights(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupportedError, match=r"\(t5\) is an encoder-decoder"):
        load_model(str(tmp_path), device=CPU)


def test_refuses_types_that_are_no_language_models(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupportedError, match=r"\(vit\): .* no causal language model"):
        load_model(str(tmp_path), device=CPU)


def test_serves_the_text_of_a_multimodal_checkpoint() -> None:
    text = {**TINY, "head_dim": 8, "sliding_window": 9}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    loaded = from_model(build(Gemma3Config(text_config=text, vision_config=vision, **tokens)))
    assert loaded.sliding_windows == [9, 9]
    check_model(loaded)


def test_serves_chunked_attention_within_one_chunk() -> None:
    config = Llama4TextConfig(**TINY, head_dim=8, num_local_experts=2, moe_layers=[])
    assert from_model(build(config)).sliding_windows == [None, None]


def warnings_of(caplog: pytest.LogCaptureFixture, config: PreTrainedConfig) -> tuple[int, str]:
    with caplog.at_level(logging.WARNING, "engine.model.loader"):
        loaded = from_model(build(config))
    own = [record.getMessage() for record in caplog.records if record.name.startswith("engine")]
    return loaded.max_model_len, "\n".join(own)


def test_caps_the_context_where_longrope_would_change_with_the_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parameters = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(**TINY, original_max_position_embeddings=48, rope_parameters=parameters)
    limit, line = warnings_of(caplog, config)
    assert limit == 48
    assert line.startswith("max_model_len=48 model=Phi3ForCausalLM model_limit=128")


def test_dynamic_rope_is_constant_within_the_context(caplog: pytest.LogCaptureFixture) -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    limit, line = warnings_of(caplog, LlamaConfig(**TINY, rope_parameters=parameters))
    assert (limit, line) == (128, "")


def attend(**keywords: Any) -> None:
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]  # as attention layers have it
    state = torch.zeros(1, 2, 3, 8)
    with use_attention_context(ProbeContext()):
        attention_forward(module, state, state, state, None, **keywords)


def test_attention_takes_keywords_without_effect() -> None:
    attend(dropout=0.0, is_causal=True, position_ids=torch.arange(3), position_bias=None)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("position_bias", torch.zeros(1, 2, 3, 3)),
        ("dropout", 0.1),
        ("is_causal", False),
        ("attention_chunk_size", 16),
        ("head_mask", torch.ones(2)),
    ],
)
def test_attention_refuses_other_keywords_by_name(keyword: str, value: Any) -> None:
    with pytest.raises(ModelNotSupportedError, match=f"Module passes {keyword}="):
        attend(**{keyword: value})


def test_attention_outside_of_a_packed_pass_says_so() -> None:
    loaded = from_model(build_family("llama"))
    with pytest.raises(ModelNotSupportedError, match="use forward_packed"):
        loaded.model(input_ids=torch.tensor([[1, 2]]))
