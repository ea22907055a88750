"""Shapes build models of the published sizes; random weights are right, repeatable and finite."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import LLM
from engine.config import EngineConfig, ModelConfig
from engine.errors import ConfigError, InvalidRequestError
from engine.model.loader import LoadedModel
from engine.model.self_check import check_model
from engine.model.shapes import load_shape, shape_config, shape_names
from engine.model_pair import load_pair
from tests.parity.families import build_family
from tests.tiny_models import greedy

CPU = torch.device("cpu")
# As published, but for the draft: its size is the sum of its one layer and two vocabularies.
BILLIONS = {
    "eagle3-llama-3.1-8b": 0.48,
    "gemma-3-4b": 3.88,
    "gpt-oss-20b": 20.9,
    "llama-3.1-8b": 8.03,
    "llama-3.2-1b": 1.24,
    "llama-3.2-3b": 3.21,
    "qwen3-0.6b": 0.60,
    "qwen3-1.7b": 1.72,
    "qwen3-30b-a3b": 30.5,
    "qwen3-8b": 8.19,
}
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
SMALL_EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gpt-oss-20b": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def small(name: str, **options: Any) -> LoadedModel:
    fields = {**SMALL, **SMALL_EXPERTS.get(name, {})}
    return load_shape(name, **{"device": CPU, "layers": 2, "fields": fields} | options)


def test_shapes_are_known_by_name() -> None:
    assert shape_names() == sorted(BILLIONS)


@pytest.mark.parametrize("name", BILLIONS)
def test_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_config(name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(BILLIONS[name] * 1e9, 0.01)
    assert model.config.dtype is torch.bfloat16


@pytest.mark.parametrize("name", BILLIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_shape_is_served_when_it_is_small(name: str, dtype: str) -> None:
    loaded = small(name, dtype=dtype)
    check_model(loaded)
    assert loaded.name == f"shape:{name}"
    assert loaded.dtype is getattr(torch, dtype)
    assert loaded.max_model_len == shape_config(name).max_position_embeddings
    assert all(weight.isfinite().all() for weight in loaded.model.parameters())


def test_keeps_what_the_family_says_of_windows_and_norms() -> None:
    gemma, llama = small("gemma-3-4b", layers=6), small("llama-3.1-8b")
    assert gemma.sliding_windows == [1024] * 5 + [None]
    assert not gemma.model.get_parameter("model.norm.weight").any()
    assert llama.model.get_parameter("model.norm.weight").eq(1.0).all()


def test_rotary_frequencies_are_those_of_a_model_built_by_transformers() -> None:
    built = AutoModelForCausalLM.from_config(
        shape_config("llama-3.1-8b", layers=1, fields=SMALL), dtype=torch.bfloat16
    )
    own = small("llama-3.1-8b", layers=1, dtype="bfloat16").model
    buffers = dict(own.named_buffers())
    assert buffers.keys() == dict(built.named_buffers()).keys()
    for name, buffer in built.named_buffers():
        assert buffer.dtype is buffers[name].dtype
        assert torch.equal(buffer, buffers[name])


def test_the_seed_is_the_weights() -> None:
    first, again, other = (small("qwen3-0.6b", seed=seed).model for seed in (3, 3, 4))
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize(("name", "tied"), [("llama-3.2-1b", True), ("llama-3.1-8b", False)])
def test_embeddings_are_tied_as_published(name: str, tied: bool) -> None:
    model = small(name).model
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_one_layer_of_a_real_shape_is_quick() -> None:
    begin = time.perf_counter()
    loaded = load_shape("qwen3-0.6b", device=CPU, dtype="bfloat16", layers=1)
    assert time.perf_counter() - begin < 30
    assert loaded.weight_bytes == pytest.approx(2 * (151936 * 1024 + 15.7e6), rel=0.01)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama-3.1-8", {}, "there is no shape 'llama-3.1-8'; did you mean 'llama-3.1-8b'"),
        ("shape:qwen", {}, "there is no shape 'qwen'"),
        ("qwen3-0.6b", {"hiden_size": 1}, "no field 'hiden_size'; did you mean 'hidden_size'"),
        ("qwen3-0.6b", {"model_type": "lama"}, "'lama' is no causal .* did you mean 'llama'"),
        ("qwen3-0.6b", {"hidden_size": "wide"}, "its fields cannot be honoured"),
        ("nowhere.yaml", {}, "nowhere.yaml: cannot be read"),
    ],
)
def test_says_what_is_wrong(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_config(name, fields=fields)


@pytest.fixture
def own_shape(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    lines = [f"{name}: {'null' if value is None else value}" for name, value in SMALL.items()]
    path.write_text("\n".join(["model_type: llama", "num_hidden_layers: 2", *lines]) + "\n")
    return f"shape:{path}"


def test_a_shape_is_a_model_without_words(own_shape: str) -> None:
    llm = LLM(own_shape, kv_cache_memory="16MiB", max_model_len=64)
    output = llm.generate([[5, 6, 7]], greedy(4))[0]
    assert len(output.outputs[0].token_ids) == 4
    with pytest.raises(InvalidRequestError, match="shape:.*own.yaml has no tokenizer"):
        llm.generate("words", greedy(4))


def test_a_shape_has_no_revision(own_shape: str) -> None:
    config = EngineConfig(model=ModelConfig(model=own_shape, revision="main"))
    with pytest.raises(ConfigError, match="revision: 'main'"):
        load_pair(config)


def test_random_weights_of_a_checkpoint_are_made_the_same_way(tmp_path: Path) -> None:
    build_family("gpt_oss").save_pretrained(tmp_path)
    config = EngineConfig(model=ModelConfig(model=str(tmp_path), load_weights=False))
    first, second = load_pair(config).target, load_pair(config).target
    for name, weight in first.model.named_parameters():
        assert torch.equal(weight, second.model.get_parameter(name))


@pytest.mark.gpu
def test_sixteen_gigabytes_are_there_in_seconds() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before, begin = torch.cuda.memory_reserved(), time.perf_counter()
    loaded = load_shape("llama-3.1-8b", device=torch.device("cuda"))
    torch.cuda.synchronize()
    assert time.perf_counter() - begin < 20
    assert loaded.weight_bytes == pytest.approx(16.06e9, rel=0.01)
    assert torch.cuda.memory_reserved() - before < 1.1 * loaded.weight_bytes
