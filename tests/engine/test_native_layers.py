"""Layers that one C function runs give a model's own words; other kinds stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedModel

from engine.config import INT8, NONE, ModelConfig
from engine.kv_cache.storage import KVCacheStorage
from engine.model import native_layers
from engine.model.forward import forward_packed
from engine.model.fused_norms import fuse_norms
from engine.model.layer_subset import subset_of
from engine.model.loader import LoadedModel, from_model
from engine.model.native_layers import NativeLayers, use_native_layers
from engine.model.self_check import chunked_logits
from engine.model_pair import compile_if_asked
from kernels.decoder_layers_cpu import GELU_TANH, check_ends, check_weights
from kernels.packed_matrix import pack_matrix, serves
from kernels.paged_attention import plan_paged_attention
from tests.parity.families import FAMILIES, build_family
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

pytestmark = pytest.mark.skipif(not serves(torch.float32), reason="no C compiler here")

# Which families have layers of the usual kind, and which have usual ends, too.
LAYERS = {"llama", "mistral", "qwen2", "qwen3"}
ENDS = LAYERS


def native(model: PreTrainedModel, *, quantization: str = NONE) -> LoadedModel:
    loaded = from_model(model, quantization=quantization)
    fuse_norms(loaded.model)
    use_native_layers(loaded)
    return loaded


def distance(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return sum(float((a - b).norm()) for a, b in zip(left, right, strict=True))


def layers_of(loaded: LoadedModel) -> NativeLayers:
    assert isinstance(loaded.native, NativeLayers)
    return loaded.native


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_stay_the_same(family: str) -> None:
    loaded = native(build_family(family))
    assert (loaded.native is not None) == (family in LAYERS)
    if loaded.native is not None:
        assert (layers_of(loaded).ends is not None) == (family in ENDS)
    prompts = random_prompts(4)
    settings = [greedy(12), seeded(12), greedy(9), seeded(12, top_p=0.9)]
    expected = generate(make_core(from_model(build_family(family))), prompts, settings)
    assert generate(make_core(loaded), prompts, settings) == expected


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("family", sorted(LAYERS))
@pytest.mark.parametrize("has_ends", [True, False])
@pytest.mark.parametrize(("quantization", "bound"), [(NONE, 2e-4), (INT8, 2e-3)])
def test_logits_are_the_models_own(
    family: str, has_ends: bool, quantization: str, bound: float
) -> None:
    loaded = native(build_family(family), quantization=quantization)
    plain = from_model(build_family(family), quantization=quantization)
    assert layers_of(loaded).ends is not None
    if not has_ends:
        layers_of(loaded).ends = None
    for ours, own in zip(chunked_logits(loaded), chunked_logits(plain), strict=True):
        torch.testing.assert_close(ours, own, atol=bound, rtol=bound)


@pytest.mark.parametrize("family", sorted(LAYERS))
def test_bfloat16_rounds_no_worse_than_the_models_own_layers(family: str) -> None:
    exact = chunked_logits(from_model(build_family(family).double()))
    model = build_family(family).bfloat16()
    own = chunked_logits(from_model(model))
    loaded = native(build_family(family).bfloat16())
    assert loaded.native is not None
    assert distance(chunked_logits(loaded), exact) <= 1.2 * distance(own, exact)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("quantization", [NONE, INT8])
def test_speculation_and_plain_decoding_give_the_same_words(quantization: str) -> None:
    prompts, settings = random_prompts(6), [greedy(20), seeded(20)] * 3
    target, draft = (native(tiny_llama(seed), quantization=quantization) for seed in (0, 1))
    assert (layers_of(target).weights[0].down.scales is not None) == (quantization == INT8)
    plain = generate(make_core(target), prompts, settings)
    assert generate(make_core(target, draft, speculation=4), prompts, settings) == plain
    if quantization == NONE:
        assert plain == generate(make_core(from_model(tiny_llama())), prompts, settings)


@pytest.mark.parametrize(("quantization", "bound"), [(NONE, 2e-4), (INT8, 2e-3)])
def test_some_layers_of_a_model_run_alone(quantization: str, bound: float) -> None:
    loaded = native(tiny_llama(layers=4), quantization=quantization)
    plain = from_model(tiny_llama(layers=4), quantization=quantization)
    for kept in ([0, 2], [1], [0, 1, 2, 3]):
        ours = subset_of(loaded, kept)
        assert layers_of(ours).indices == kept
        expected = chunked_logits(subset_of(plain, kept))
        for left, right in zip(chunked_logits(ours), expected, strict=True):
            torch.testing.assert_close(left, right, atol=bound, rtol=bound)
    nothing = subset_of(loaded, [])
    assert nothing.native is None


def one_pass(loaded: LoadedModel, token_ids: list[int] | torch.Tensor) -> torch.Tensor:
    size = len(token_ids)
    storage = KVCacheStorage(loaded.layers, 8, 4, loaded.dtype, loaded.device)
    plan = plan_paged_attention(
        torch.tensor([[3, 1, 2, 4]]),
        torch.tensor([0, size]),
        torch.tensor([size]),
        4,
        dtype=loaded.dtype,
    )
    positions = torch.arange(size)
    slots = torch.tensor([3, 1, 2, 4])[positions // 4] * 4 + positions % 4
    return forward_packed(
        loaded,
        storage,
        torch.as_tensor(token_ids),
        positions,
        slots,
        plan,
        torch.tensor([0, size - 1]),
    )


def test_positions_without_a_kept_rotation_go_the_models_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = one_pass(from_model(tiny_llama()), [5, 6, 7, 8, 9])
    monkeypatch.setattr(native_layers, "_MOST_POSITIONS", 4)
    torch.testing.assert_close(one_pass(native(tiny_llama()), [5, 6, 7, 8, 9]), expected)


def test_tokens_may_be_a_column_of_a_table() -> None:
    loaded, table = native(tiny_llama()), torch.tensor([[5, 1, 2], [6, 3, 4], [7, 8, 9]])
    torch.testing.assert_close(one_pass(loaded, table[:, 0]), one_pass(loaded, [5, 6, 7]))


def test_unknown_tokens_are_refused() -> None:
    loaded = native(tiny_llama())
    for wrong in (-1, 128):
        with pytest.raises(IndexError, match="token"):
            one_pass(loaded, [1, wrong])


class ShiftedLayers:
    """Makes a model whose layers add a little, under the usual names."""

    @staticmethod
    def make() -> PreTrainedModel:
        model = tiny_llama()
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _, __, hidden: hidden * 1.01)
        return model


def test_layers_that_compute_something_else_are_left_alone() -> None:
    loaded = native(ShiftedLayers.make())
    assert loaded.native is None
    assert all("forward" not in vars(layer) for layer in loaded.model.model.layers)


def test_a_model_with_other_ends_keeps_them() -> None:
    model = tiny_llama()
    model.model.embed_tokens.register_forward_hook(lambda _, __, hidden: hidden * 2.0)
    loaded = native(model)
    assert layers_of(loaded).ends is None


def test_a_model_that_scales_its_embedding_keeps_its_ends_and_gives_its_layers() -> None:
    """Gemma 1: GELU by tanh, norms that add 1 to their weight, a scaled embedding."""

    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        config = GemmaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return GemmaForCausalLM(config).eval()

    loaded = native(build())
    assert layers_of(loaded).ends is None
    assert layers_of(loaded).shape.activation == GELU_TANH
    prompts, settings = random_prompts(4), [greedy(12), seeded(12)] * 2
    expected = generate(make_core(from_model(build())), prompts, settings)
    assert generate(make_core(loaded), prompts, settings) == expected
    for ours, own in zip(chunked_logits(loaded), chunked_logits(from_model(build())), strict=True):
        torch.testing.assert_close(ours, own, atol=2e-4, rtol=2e-4)


def test_a_head_of_another_type_is_left_alone() -> None:
    def build() -> PreTrainedModel:
        model = tiny_llama().bfloat16()
        model.lm_head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        return model

    loaded = native(build())
    assert layers_of(loaded).ends is None
    prompts, settings = random_prompts(2), [greedy(8), seeded(8)]
    words = generate(make_core(loaded), prompts, settings)
    assert generate(make_core(loaded, speculation=3), prompts, settings) == words


def test_the_c_function_is_given_no_weights_of_another_type() -> None:
    layers = layers_of(native(tiny_llama()))
    own, ends = layers.weights[0], layers.ends
    assert ends is not None
    hidden = own.down.outputs
    check_weights(layers.shape, own, hidden, torch.float32)
    check_ends(ends, hidden, torch.float32)
    with pytest.raises(ValueError, match="projections is of torch.float32"):
        check_weights(layers.shape, own, hidden, torch.bfloat16)
    wrong = {
        "embedding": ends.embedding.bfloat16(),
        "norm": ends.norm.double(),
        "head": pack_matrix(torch.zeros(128, hidden, dtype=torch.bfloat16)),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            check_ends(replace(ends, **{name: value}), hidden, torch.float32)
    columns = torch.zeros(hidden, 128).T
    with pytest.raises(ValueError, match="embedding"):
        check_ends(replace(ends, embedding=columns), hidden, torch.float32)


def test_layers_of_mixed_types_are_left_alone() -> None:
    model = tiny_llama().bfloat16()
    down = model.model.layers[1].mlp.down_proj.float()
    down.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    down.register_forward_hook(lambda _, __, output: output.bfloat16())
    assert native(model).native is None


@pytest.mark.parametrize("quantization", [NONE, INT8])
def test_projections_that_are_not_fused_are_left_alone(quantization: str) -> None:
    loaded = from_model(tiny_llama(), fuse_projections=False, quantization=quantization)
    fuse_norms(loaded.model)
    assert not use_native_layers(loaded)
    assert loaded.native is None


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_setting_turns_them_off(is_wanted: bool) -> None:
    loaded = from_model(tiny_llama())
    compile_if_asked(ModelConfig(native_layers=is_wanted), loaded)
    assert (loaded.native is not None) == is_wanted
