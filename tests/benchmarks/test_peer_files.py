"""Checkpoints that peers read: random ones, and ours written as GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.random_checkpoint import Shape, write_checkpoint
from benchmarks.peers.safetensors_arrays import as_bfloat16_bits, read_float32
from tests.tiny_models import tiny_llama

TINY = Shape(num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    assert write_checkpoint(folder, TINY) == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()
    )
    return folder


def test_any_text_can_be_encoded_and_comes_back(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = "Two words, 3 cents, œ and 木."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids) < len(tokenizer) == TINY.vocab_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_read_as_float32_from_every_type(dtype: torch.dtype, tmp_path: Path) -> None:
    known = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype)}
    save_file(known, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = dict(read_float32(tmp_path))
    assert read.keys() == known.keys()
    for name, values in read.items():
        assert torch.from_numpy(values).equal(known[name].float())


def test_other_types_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no safetensors"):
        list(read_float32(tmp_path))
    save_file({"a": torch.zeros(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="a: I8 is not one of"):
        list(read_float32(tmp_path))


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    values = torch.cat([torch.randn(1000), torch.tensor([1.00390625, 1.01171875, -0.0])])
    bits = as_bfloat16_bits(values.numpy()).view(np.int16)
    assert torch.from_numpy(bits).equal(values.to(torch.bfloat16).view(torch.int16))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gguf_file_has_the_same_weights_and_words(
    dtype: str, checkpoint: Path, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package writes and reads the file")
    from benchmarks.peers.gguf_file import rotary_order, write_gguf

    path = tmp_path / "model.gguf"
    write_gguf(checkpoint, path, dtype)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    known = dict(read_float32(checkpoint))
    assert len(tensors) == len(known)
    up = gguf.dequantize(
        tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type
    )
    expected = torch.from_numpy(known["model.layers.1.mlp.up_proj.weight"])
    assert torch.from_numpy(up.copy()).equal(expected.to(getattr(torch, dtype)).float())
    query = gguf.dequantize(
        tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type
    )
    rows = torch.from_numpy(known["model.layers.0.self_attn.q_proj.weight"])
    paired = rows.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)
    assert torch.from_numpy(rotary_order(rows.numpy(), 4)).equal(paired)
    assert torch.from_numpy(query.copy()).equal(paired.to(getattr(torch, dtype)).float())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    vocab = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    assert [tokens[number] for number in vocab.values()] == list(vocab)
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 3


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf package writes the file")
    from benchmarks.peers.gguf_file import write_gguf

    tiny_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    with pytest.raises(ValueError, match="model_type: 'qwen3'"):
        write_gguf(tmp_path, tmp_path / "model.gguf", "float32")
