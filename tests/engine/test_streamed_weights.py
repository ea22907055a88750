"""Plain checkpoints are read straight into place, to the same weights; others are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.errors import ModelLoadError
from engine.model import streamed_weights
from engine.model.loader import from_model, load_model
from engine.model.safetensors_files import stored_tensors
from engine.model.shapes import load_shape
from engine.model.streamed_weights import load_streamed
from tests.parity.families import FAMILIES, build_family
from tests.tiny_models import tiny_llama

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Their checkpoints are stored in other pieces than the model's.
CONVERTED = {"mixtral", "qwen3_moe"}
# Keeps some weights in float32 whatever is asked for.
MIXED = ("gpt_oss", torch.bfloat16)


def streamed(folder: Path, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel | None:
    config = AutoConfig.from_pretrained(folder)
    return load_streamed(str(folder), config, dtype=dtype, device=DEVICE)


def assert_same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    own, expected = one.state_dict(), other.state_dict()
    assert own.keys() == expected.keys()
    for name, weight in expected.items():
        assert own[name].dtype is weight.dtype, name
        assert torch.equal(own[name].cpu(), weight), name
    for name, buffer in other.named_buffers():
        assert torch.equal(one.get_buffer(name).cpu(), buffer), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build_family("qwen3")
    model.generation_config.eos_token_id = [5, 9]
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_weights_that_transformers_gives(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    build_family(name).save_pretrained(tmp_path)
    model = streamed(tmp_path, dtype)
    assert (model is None) is (name in CONVERTED or (name, dtype) == MIXED)
    if model is not None:
        assert_same(model, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype))


def test_large_tensors_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_weights, "_PIECE_BYTES", 1000)
    model = streamed(folder)
    assert model is not None
    assert_same(model, AutoModelForCausalLM.from_pretrained(folder))


def test_a_cpu_leaves_large_checkpoints_to_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, cpu = AutoConfig.from_pretrained(folder), torch.device("cpu")
    num_bytes = sum(one.num_bytes for one in (stored_tensors(folder) or {}).values())
    monkeypatch.setattr(streamed_weights, "_MOST_BYTES_ON_CPU", num_bytes)
    assert load_streamed(str(folder), config, dtype=torch.float32, device=cpu) is not None
    monkeypatch.setattr(streamed_weights, "_MOST_BYTES_ON_CPU", num_bytes - 1)
    assert load_streamed(str(folder), config, dtype=torch.float32, device=cpu) is None


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    build_family("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = streamed(tmp_path)
    assert model is not None
    assert_same(model, build_family("llama"))


def test_tied_weights_are_read_once(tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    loaded = streamed(tmp_path)
    assert loaded is not None
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same(loaded, model)


def test_auto_is_the_dtype_of_the_configuration(folder: Path, tmp_path: Path) -> None:
    build_family("qwen3").to(torch.float16).save_pretrained(folder)
    model = streamed(folder, "auto")
    assert model is not None
    assert model.dtype is torch.float16


def test_answers_end_where_the_checkpoint_says(folder: Path) -> None:
    model = streamed(folder)
    assert model is not None
    assert model.generation_config.eos_token_id == [5, 9]
    assert from_model(model).eos_token_ids == (5, 9)


def with_tensors(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.norm.weight"
    if change == "one more":
        tensors["model.extra"] = tensors[name].clone()
    elif change == "one less":
        del tensors[name]
    elif change == "another shape":
        tensors[name] = tensors[name][:-1].clone()
    else:
        tensors["norm.weight"] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("change", ["one more", "one less", "another shape", "another name"])
def test_other_tensors_are_left_to_transformers(change: str, folder: Path) -> None:
    with_tensors(folder, change)
    assert streamed(folder) is None


def test_quantised_checkpoints_are_left_to_transformers(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "fp8"}
    assert load_streamed(str(folder), config, dtype=torch.float32, device=DEVICE) is None


@pytest.mark.parametrize("damage", ["cut", "no header", "a missing shard", "nothing there"])
def test_damaged_files_are_no_checkpoint(damage: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-8])
    elif damage == "no header":
        path.write_bytes(b"\xff" * 64)
    else:
        path.unlink()
        if damage == "a missing shard":
            index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert stored_tensors(folder) is None
    with pytest.raises(ModelLoadError, match="the model cannot be loaded"):
        load_model(str(folder), device=DEVICE)


def test_a_hub_id_that_is_not_here_yet_is_left_to_transformers(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert load_streamed("nobody/nothing", config, dtype=torch.float32, device=DEVICE) is None


def test_a_hub_id_is_read_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.from_pretrained(folder)
    config._commit_hash = "0" * 40
    asked = []

    def cached(name: str, file: str, revision: str) -> str:
        asked.append((name, file, revision))
        return str(folder / file)

    monkeypatch.setattr(streamed_weights, "try_to_load_from_cache", cached)
    model = load_streamed("some/model", config, dtype=torch.float32, device=DEVICE)
    assert model is not None
    assert asked == [("some/model", "config.json", "0" * 40)]
    assert_same(model, build_family("qwen3"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gpu_gets_every_piece_through_pinned_memory(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 4096}
    shape = load_shape(
        "llama-3.1-8b", dtype="bfloat16", device=torch.device("cpu"), layers=4, fields=fields
    )
    shape.model.save_pretrained(tmp_path, max_shard_size="8MB")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    monkeypatch.setattr(streamed_weights, "_PIECE_BYTES", 2**16)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    loaded = load_model(str(tmp_path), dtype=dtype, device=torch.device("cuda"))
    assert_same(loaded.model, expected)
