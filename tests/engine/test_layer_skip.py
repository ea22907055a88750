"""Drafts of the target's own layers: the same words, nothing kept twice, and a choice that pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig, SpeculationConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.errors import ConfigError, ModelNotSupportedError
from engine.model.attention import PAGED_ATTENTION
from engine.model.layer_subset import subset_of
from engine.model.loader import LoadedModel, from_model, set_attention
from engine.model_pair import ModelPair, load_pair
from engine.sampling_params import SamplingParams
from engine.speculative.layer_choice import choose_layers, trial_prompts
from engine.structured_output import StructuredOutput
from tests.byte_tokenizer import byte_tokenizer
from tests.parity.families import FAMILIES, build_family
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

PROMPTS = random_prompts(6)
NUM_TOKENS = 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def skipping(
    kept: tuple[int, ...] = (0, 2), *, vocab: int = 128, layers: int = 3, **options: Any
) -> EngineCore:
    """A core whose target drafts with some of its layers."""
    options = {"kv_cache_memory": "64MiB", "draft": "layer-skip", "speculation": 3} | options
    target = from_model(tiny_llama(layers=layers, vocab=vocab))
    tokenizer = byte_tokenizer() if vocab > 256 else None
    pair = ModelPair(target, load_tokenizer=lambda: tokenizer, kept_layers=kept)
    return EngineCore(apply_options(EngineConfig(), options), pair)


def plain(**options: Any) -> EngineCore:
    return make_core(tiny_llama(layers=3), **options)


@pytest.mark.parametrize("kept", [(0,), (0, 2), (1,), (0, 1, 2), ()])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("params", [greedy(NUM_TOKENS), seeded(NUM_TOKENS)], ids=["t0", "t1"])
def test_words_are_the_plain_ones(kept: tuple[int, ...], k: int, params: SamplingParams) -> None:
    core = skipping(kept, speculation=k)
    assert generate(core, PROMPTS, params) == generate(plain(), PROMPTS, params)
    assert core.stats().speculation.num_draft_tokens > 0
    assert core.kv.usage == 0.0


def test_synthetic_acceptance_writes_what_is_drafted() -> None:
    core = skipping((0,), speculation=4, synthetic_acceptance="1")
    assert generate(core, PROMPTS, greedy(21)) != generate(plain(), PROMPTS, greedy(21))
    assert core.stats().speculation.acceptance_rate == 1.0
    core = skipping((0,), speculation=4, synthetic_acceptance="0")
    assert generate(core, PROMPTS, greedy(21)) == generate(plain(), PROMPTS, greedy(21))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_all_layers_are_accepted_whole(temperature: float) -> None:
    core = skipping((0, 1, 2))
    generate(core, PROMPTS, seeded(40, temperature=temperature))
    assert core.stats().speculation.acceptance_rate == 1.0


def test_fewer_layers_need_no_memory_of_their_own() -> None:
    options = {"kv_cache_memory": "8MiB"}
    assert skipping(**options).info.num_blocks == plain(**options).info.num_blocks


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 7, "block_size": 4},
        {"num_blocks": 24, "max_model_len": 64},
        {"block_size": 4},
        {"draft": "ngram,layer-skip"},
        {"speculation": "auto"},
    ],
    ids=["chunks", "preemption", "prefixes", "lookups", "auto"],
)
def test_words_are_the_plain_ones_however_they_are_scheduled(options: dict[str, Any]) -> None:
    options = dict(options)
    if "num_blocks" in options:
        # Three layers of keys and values, two heads of 8 in float32, blocks of 4 tokens.
        block_bytes = 3 * 2 * 2 * 8 * 4 * 4
        options |= {
            "block_size": 4,
            "kv_cache_memory": str(options.pop("num_blocks") * block_bytes),
        }
    expected = generate(plain(), PROMPTS, greedy(NUM_TOKENS))
    core = skipping(**options)
    for _ in range(2):
        assert generate(core, PROMPTS, greedy(NUM_TOKENS)) == expected
    if "kv_cache_memory" in options:
        assert core.scheduler.num_preemptions > 0, "the pool was meant to be too small"


def test_words_are_the_plain_ones_under_penalties_filters_and_grammars() -> None:
    shape = StructuredOutput(kind="regex", text="[0-9]{3}-[a-z]+")
    params = [
        seeded(NUM_TOKENS, repetition_penalty=1.3, top_p=0.9, temperature=0.7),
        seeded(NUM_TOKENS, presence_penalty=1.0, frequency_penalty=0.5, min_p=0.02),
        seeded(NUM_TOKENS, allowed_token_ids=tuple(range(10, 40))),
        SamplingParams(seed=3, max_tokens=NUM_TOKENS, structured_output=shape),
        SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, structured_output=shape),
        greedy(NUM_TOKENS, max_draft_tokens=0),
    ]
    target = tiny_llama(layers=3, vocab=258)
    expected = generate(make_core(target, tokenizer=byte_tokenizer()), PROMPTS, params)
    assert generate(skipping(vocab=258), PROMPTS, params) == expected


def own_logits(loaded: LoadedModel, token_ids: torch.Tensor) -> torch.Tensor:
    set_attention(loaded.model, "eager", loaded.name)
    with torch.inference_mode():
        logits: torch.Tensor = loaded.model(input_ids=token_ids, use_cache=False).logits
    set_attention(loaded.model, PAGED_ATTENTION, loaded.name)
    return logits


def layers_of(loaded: LoadedModel) -> torch.nn.ModuleList:
    base = loaded.model.base_model
    layers = base.h if hasattr(base, "h") else base.layers
    assert isinstance(layers, torch.nn.ModuleList)
    return layers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_subset_is_the_model_with_layers_passed_by(family: str) -> None:
    """Beside a second copy of the model whose middle layer is told to hand its input on."""
    token_ids = torch.arange(3, 33)[None]
    whole, reference = from_model(build_family(family)), from_model(build_family(family))
    subset = subset_of(whole, [0, 2])
    before = own_logits(whole, token_ids)
    layer = layers_of(reference)[1]
    layer.register_forward_hook(lambda _, inputs, __: inputs[0])
    expected = own_logits(reference, token_ids)
    torch.testing.assert_close(own_logits(subset, token_ids), expected)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(own_logits(whole, token_ids), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_the_plain_words_with_fewer_layers(family: str) -> None:
    prompts = random_prompts(3, high=20)
    expected = generate(make_core(build_family(family)), prompts, seeded(10))
    pair = ModelPair(from_model(build_family(family)), kept_layers=(0, 2))
    options = {"kv_cache_memory": "16MiB", "draft": "layer-skip", "speculation": 2}
    core = EngineCore(apply_options(EngineConfig(), options), pair)
    assert generate(core, prompts, seeded(10)) == expected


def test_a_model_without_one_list_of_layers_is_refused_by_name() -> None:
    loaded = from_model(tiny_llama(layers=2))
    loaded.layers.append(loaded.layers[0])
    with pytest.raises(ModelNotSupportedError, match="layer-skip: .*LlamaForCausalLM.* 0 lists"):
        subset_of(loaded, [0])


def test_layers_that_do_nothing_are_the_first_to_go() -> None:
    model = tiny_llama(layers=6)
    with torch.no_grad():
        for index in (1, 3, 4):
            layer = model.model.layers[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    loaded = from_model(model)
    choice = choose_layers(loaded, trial_prompts(None, loaded))
    assert not {1, 3, 4} & set(choice.kept)
    assert choice.survival[0] > 0.0


def test_a_choice_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = from_model(tiny_llama(layers=3))
    prompts = trial_prompts(None, loaded)
    choice = choose_layers(loaded, prompts)
    (path,) = (tmp_path / "outdraft").glob("layers-*.json")
    content = json.loads(path.read_text())
    assert tuple(content["kept"]) == choice.kept
    path.write_text(json.dumps(content | {"kept": [1]}))
    assert choose_layers(loaded, prompts).kept == (1,)
    path.write_text("broken")
    choose_layers(loaded, prompts)
    assert json.loads(path.read_text()).keys() == content.keys()
    other = from_model(tiny_llama(layers=3), name="another")
    choose_layers(other, prompts)
    assert len(list((tmp_path / "outdraft").glob("layers-*.json"))) == 2


def test_trial_texts_look_like_what_the_model_is_used_to() -> None:
    loaded = from_model(tiny_llama(vocab=258))
    tokenizer = byte_tokenizer()
    prompts = trial_prompts(tokenizer, loaded)
    assert str(tokenizer.decode(prompts[0])).startswith("<user>Hello!")
    bare = trial_prompts(byte_tokenizer(chat_template=None), loaded)
    assert str(tokenizer.decode(bare[0])).startswith("Hello!")


def test_layer_skip_is_one_name_among_drafters(tmp_path: Path) -> None:
    config = SpeculationConfig(draft="suffix,layer-skip")
    assert config.skips_layers
    assert config.draft_model is None
    with pytest.raises(ConfigError, match="at most one draft model or layer-skip"):
        SpeculationConfig(draft="layer-skip,org/draft")
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "draft": "layer-skip"}
    pair = load_pair(apply_options(EngineConfig(), options))
    assert pair.draft is None
    assert pair.kept_layers
    off = load_pair(apply_options(EngineConfig(), options | {"speculation": "off"}))
    assert off.kept_layers is None
