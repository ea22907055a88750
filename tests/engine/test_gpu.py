"""The same words on a CUDA device as on a CPU; run by `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.model.compiled import compile_layers
from engine.model.loader import from_model
from engine.model_pair import ModelPair
from engine.runner.memory import pass_bytes
from engine.sampling.noise import gumbel_noise
from engine.speculative.layer_choice import choose_layers, trial_prompts
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama
from tests.two_vocabularies import TEXT, byte_level, foreign_core, sentencepiece

pytestmark = pytest.mark.gpu

PROMPTS = random_prompts(6)
NUM_TOKENS = 20


def on_gpu(seed: int = 0) -> torch.nn.Module:
    """Make a tiny model on the device."""
    return tiny_llama(seed).cuda()


@pytest.mark.parametrize("k", [1, 4, 8])
def test_words_on_gpu_equal_words_on_cpu(k: int) -> None:
    for params in (greedy(NUM_TOKENS), seeded(NUM_TOKENS, repetition_penalty=1.2, top_p=0.9)):
        expected = generate(make_core(tiny_llama()), PROMPTS, params)
        for draft_seed in (0, 1):
            core = make_core(on_gpu(), on_gpu(draft_seed), speculation=k)
            assert generate(core, PROMPTS, params) == expected


@pytest.mark.parametrize("method", ["tli", "slem"])
def test_drafts_of_another_vocabulary_change_no_words_on_gpu(method: str) -> None:
    tokenizer, other = byte_level(400), sentencepiece(420)
    prompts = [tokenizer.encode(TEXT[:size], add_special_tokens=False) for size in (9, 40, 75)]
    for params in (greedy(NUM_TOKENS), seeded(NUM_TOKENS, repetition_penalty=1.2, top_p=0.9)):
        expected = generate(make_core(tiny_llama(vocab=400)), prompts, params)
        target = tiny_llama(vocab=400).cuda(), tokenizer
        core = foreign_core(target, (tiny_llama(1, vocab=len(other)).cuda(), other), method)
        assert generate(core, prompts, params) == expected


def test_fewer_layers_choose_themselves_and_change_no_words_on_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded = from_model(tiny_llama(layers=3).cuda())
    kept = choose_layers(loaded, trial_prompts(None, loaded)).kept
    options = {"kv_cache_memory": "64MiB", "draft": "layer-skip", "speculation": 3}
    config = apply_options(EngineConfig(), options)
    core = EngineCore(config, ModelPair(loaded, kept_layers=kept))
    expected = generate(make_core(tiny_llama(layers=3)), PROMPTS, seeded(NUM_TOKENS))
    assert generate(core, PROMPTS, seeded(NUM_TOKENS)) == expected


SETTINGS = [
    greedy(18),
    seeded(25),
    seeded(9, temperature=0.6, top_k=7),
    seeded(30, repetition_penalty=1.3, frequency_penalty=0.2, top_p=0.9),
    greedy(22, logit_bias={7: 4.0, 9: -5.0}),
    seeded(12, min_p=0.05, seed=2**64 - 1),
]


@pytest.mark.parametrize("options", [{"graphs": "eager"}, {"graphs": "lazy"}, {"graphs": "full"}])
def test_a_loop_ahead_of_the_host_says_what_synchronous_steps_say(options: dict[str, str]) -> None:
    plain = make_core(on_gpu(), on_gpu(1), speculation=3, decode_ahead="off")
    expected = generate(plain, PROMPTS, SETTINGS)
    for draft in (on_gpu(), on_gpu(1)):
        core = make_core(on_gpu(), draft, speculation=3, max_num_seqs=6, **options)
        # Twice, so that what was recorded is replayed.
        assert generate(core, PROMPTS, SETTINGS) == expected
        assert generate(core, PROMPTS, SETTINGS) == expected
        assert core._loop is not None


def test_a_chosen_number_of_drafts_changes_no_words_on_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = generate(make_core(tiny_llama()), PROMPTS, SETTINGS)
    core = make_core(on_gpu(), on_gpu(), speculation="auto", max_num_seqs=8)
    assert generate(core, PROMPTS, SETTINGS) == expected
    assert core.stats().speculation.num_accepted_tokens > 0


def test_compiled_layers_in_graphs_say_the_same() -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, SETTINGS)
    loaded = from_model(on_gpu())
    compile_layers(loaded)
    core = make_core(loaded)
    assert generate(core, PROMPTS, SETTINGS) == expected
    assert generate(core, PROMPTS, SETTINGS) == expected


def test_noise_is_the_same_on_every_device() -> None:
    rows = ([3, 2**63 + 5], [0, 2], [17, 100_000], 5_003)
    assert torch.equal(gumbel_noise(*rows, device="cuda").cpu(), gumbel_noise(*rows))


def test_activations_of_a_full_step_are_measured() -> None:
    core = make_core(on_gpu())
    assert pass_bytes(core.config, from_model(on_gpu())) > 0


def test_the_cache_is_sized_from_free_memory() -> None:
    core = make_core(on_gpu(), kv_cache_memory=None, memory_utilization=0.5)
    free, total = torch.cuda.mem_get_info()
    assert core.kv.num_blocks > 1_000
    assert total - free < 0.6 * total
