"""int8 weights: who holds them, what goes, what is refused, and how little they change words."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from engine import model_pair
from engine.config import INT8, NONE, EngineConfig, ModelConfig
from engine.config_files import apply_options
from engine.errors import ConfigError, ModelNotSupportedError
from engine.model import int8_weights, loader
from engine.model.compiled import compile_layers
from engine.model.fused_projections import fuse, separate_unshared
from engine.model.int8_weights import Int8Linear, Int8Weight, check_int8, use_int8_linear
from engine.model.loader import LoadedModel, from_model, load_model
from engine.model.self_check import check_model
from engine.model.shapes import load_shape
from engine.tokenization import load_tokenizer
from kernels.packed_matrix import serves
from tests.parity.families import build_family
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

pytestmark = pytest.mark.skipif(
    not serves(torch.float32), reason="this machine has no C compiler for them"
)

CPU = torch.device("cpu")
# Nats, between the distributions of the next token; rounding to 4 bits would exceed it by far.
MOST_KL = 5e-4
TEXTS = (
    "Once upon a time there was a little dog who lived by the sea. Every morning he ran to the",
    "I would like to book a table for two people in San Jose tonight, please. What time would",
    "The children were hungry, so their mother went to the market to buy some bread and",
)


def in_int8(model: PreTrainedModel, **options: bool) -> LoadedModel:
    return from_model(model, quantization=INT8, **options)


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@torch.inference_mode()
def log_probs(loaded: LoadedModel, token_ids: torch.Tensor) -> torch.Tensor:
    loaded.model.set_attn_implementation("eager")
    logits: torch.Tensor = loaded.model(input_ids=token_ids, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("fused", [True, False])
def test_every_linear_layer_holds_int8_weights_and_no_others(fused: bool) -> None:
    model = tiny_llama()
    gone = [weakref.ref(module.weight) for module in linears(model)]
    plain = sum(module.weight.numel() for module in linears(model))
    loaded = in_int8(model, fuse_projections=fused)
    gc.collect()
    assert all(module.weight is None for module in linears(loaded.model))
    assert not any(reference() is not None for reference in gone)
    orders = [module.order for module in loaded.model.modules() if isinstance(module, Int8Weight)]
    assert all(order.panels.dtype == torch.int8 for order in orders)
    assert sum(order.outputs * order.depth for order in orders) == plain
    assert loaded.weight_bytes < from_model(tiny_llama()).weight_bytes / 2
    check_model(loaded)


def test_an_output_layer_leaves_the_embedding_it_shares_as_it_was() -> None:
    model = tiny_llama()
    embedding = model.get_input_embeddings()
    model.lm_head.weight = embedding.weight
    before = embedding.weight.clone()
    loaded = in_int8(model)
    assert isinstance(loaded.model.lm_head, Int8Linear)
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "olmo2", "mistral"])
def test_families_say_nearly_what_they_said(name: str) -> None:
    token_ids = torch.tensor([[5, 9, 2, 77, 31]])
    exact = log_probs(from_model(build_family(name)), token_ids)
    loaded = in_int8(build_family(name))
    rounded = log_probs(loaded, token_ids)
    assert not torch.equal(exact, rounded)
    assert ((exact.exp() - rounded.exp()).abs() < 0.1).all()


class Layer(nn.Module):
    """Three projections of one input, called as the test likes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q_proj = nn.Linear(24, 20)
        self.k_proj = nn.Linear(24, 9)
        self.v_proj = nn.Linear(24, 9)
        self.requires_grad_(False)

    def all_of(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.q_proj(x), self.k_proj(x), self.v_proj(x)]


def test_projections_together_are_those_alone_in_any_order() -> None:
    together, alone = Layer(), Layer()
    assert fuse(together, quantises=True) == 1
    assert use_int8_linear(together) == 0
    assert use_int8_linear(alone) == 3
    first, second = torch.randn(2, 5, 24)
    for one, other in zip(together.all_of(first), alone.all_of(first), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(together.v_proj(second), alone.v_proj(second))
    assert torch.equal(together.k_proj(second), alone.k_proj(second))


def test_projections_that_are_not_called_together_part_with_the_same_weights() -> None:
    layer, alone = Layer(), Layer()
    fuse(layer, quantises=True)
    use_int8_linear(alone)
    first, second = torch.randn(2, 5, 24)
    layer.q_proj(first)
    assert separate_unshared(layer) == 1
    assert all(type(module) is Int8Linear for module in layer.children())
    for one, other in zip(layer.all_of(second), alone.all_of(second), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fused", [True, False])
def test_casting_is_refused(fused: bool) -> None:
    loaded = in_int8(tiny_llama(), fuse_projections=fused)
    with pytest.raises(RuntimeError, match="neither moved nor cast"):
        loaded.model.double()


def test_a_copy_says_the_same() -> None:
    loaded = in_int8(tiny_llama())
    token_ids = torch.tensor([[5, 9, 2]])
    expected = log_probs(loaded, token_ids)
    loaded.model = deepcopy(loaded.model)
    assert torch.equal(log_probs(loaded, token_ids), expected)


def test_layers_with_int8_weights_can_be_compiled() -> None:
    loaded = in_int8(tiny_llama())
    expected = generate(make_core(in_int8(tiny_llama())), random_prompts(4), greedy(12))
    compile_layers(loaded, backend="aot_eager")
    assert generate(make_core(loaded), random_prompts(4), greedy(12)) == expected


@pytest.mark.parametrize("draft_is_int8", [True, False])
def test_words_are_the_same_with_speculation_and_without(draft_is_int8: bool) -> None:
    prompts = random_prompts(6)
    settings = [greedy(24), seeded(24), seeded(24, top_p=0.9), greedy(12), seeded(20), greedy(24)]
    expected = generate(make_core(in_int8(tiny_llama())), prompts, settings)
    quantization = INT8 if draft_is_int8 else NONE
    for number in (1, 3, 5):
        draft = from_model(tiny_llama(1), quantization=quantization)
        core = make_core(in_int8(tiny_llama()), draft, speculation=number)
        assert generate(core, prompts, settings) == expected


def test_words_of_the_target_as_its_own_draft_are_accepted() -> None:
    prompts = random_prompts(3)
    expected = generate(make_core(in_int8(tiny_llama())), prompts, greedy(24))
    core = make_core(in_int8(tiny_llama()), in_int8(tiny_llama()), speculation=3)
    assert generate(core, prompts, greedy(24)) == expected


@pytest.fixture
def real_target(root: Path) -> Path:
    """The starter target where it is beside the checkout, else the demo pair's."""
    starter = root.parent / "shared/models/starter-target"
    return starter if starter.is_dir() else root / "model_configs/demo/target"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_next_tokens_of_a_trained_model_hardly_change(real_target: Path, dtype: str) -> None:
    if not serves(getattr(torch, dtype)):
        pytest.skip(f"no function for {dtype}")
    name = str(real_target)
    exact = load_model(name, dtype="float32", device=CPU)
    loaded = load_model(name, dtype=dtype, device=CPU, quantization=INT8)
    tokenizer = load_tokenizer(name)
    assert tokenizer is not None
    loss = []
    for text in TEXTS:
        token_ids = torch.tensor([tokenizer.encode(text)])
        p, q = log_probs(exact, token_ids), log_probs(loaded, token_ids)
        loss.append((p.exp() * (p - q)).sum(-1))
    assert 0.0 < float(torch.cat(loss).mean()) < MOST_KL


def test_the_setting_reaches_target_and_draft(demo_pair: tuple[Path, Path]) -> None:
    settings = {"model": str(demo_pair[0]), "draft": str(demo_pair[1]), "quantization": INT8}
    pair = model_pair.load_pair(apply_options(EngineConfig(), {**settings, "device": "cpu"}))
    assert pair.draft is not None
    for loaded in (pair.target, pair.draft):
        assert isinstance(loaded.model.lm_head, Int8Linear)


def test_shapes_hold_int8_weights_too() -> None:
    loaded = load_shape("qwen3-0.6b", device=CPU, layers=1, quantization=INT8)
    assert all(module.weight is None for module in linears(loaded.model))


def test_unknown_quantizations_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantization: 'int4' is not one of none, int8"):
        ModelConfig(quantization="int4")


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda", "auto", "quantization: int8 is computed on CPUs alone, and the device is cuda"),
        ("meta", torch.float32, "the device is meta"),
        ("cpu", torch.float16, "float32 and bfloat16, not float16; give another --dtype"),
    ],
)
def test_devices_and_types_are_refused_by_name(
    device: str, dtype: torch.dtype | str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_int8(torch.device(device), dtype)


def test_a_type_is_refused_before_anything_is_loaded(
    demo_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_with_weights", None)
    with pytest.raises(ConfigError, match="quantization: int8 .* not float16"):
        load_model(str(demo_pair[0]), dtype="float16", device=CPU, quantization=INT8)
    with pytest.raises(ConfigError, match="quantization: int8 .* not float16"):
        load_shape("qwen3-0.6b", dtype="float16", device=CPU, quantization=INT8)


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_weights, "serves", lambda _: False)
    with pytest.raises(ConfigError, match="quantization: int8 needs a C compiler"):
        from_model(tiny_llama(), quantization=INT8)


def test_models_whose_weights_are_mostly_elsewhere_are_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))
    with pytest.raises(ModelNotSupportedError, match="quantization: int8 .*GPT2LMHeadModel"):
        from_model(model, quantization=INT8)
