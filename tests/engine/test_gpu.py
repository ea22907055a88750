"""The same words on a CUDA device as on a CPU; run by `make gpu`."""

from __future__ import annotations

import pytest
import torch

from engine.model.loader import from_model
from engine.runner.memory import activation_bytes
from engine.sampling.noise import gumbel_noise
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

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


def test_noise_is_the_same_on_every_device() -> None:
    rows = ([3, 2**63 + 5], [0, 2], [17, 100_000], 5_003)
    assert torch.equal(gumbel_noise(*rows, device="cuda").cpu(), gumbel_noise(*rows))


def test_activations_of_a_full_step_are_measured() -> None:
    core = make_core(on_gpu())
    assert activation_bytes(core.config, from_model(on_gpu())) > 0


def test_the_cache_is_sized_from_free_memory() -> None:
    core = make_core(on_gpu(), kv_cache_memory=None, memory_utilization=0.5)
    free, total = torch.cuda.mem_get_info()
    assert core.kv.num_blocks > 1_000
    assert total - free < 0.6 * total
