"""The engine's greedy words are transformers' own, for every family, token for token.

Whatever the batch (1, 5, 32), the chunks, the cache, preemption and the number of drafts.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from engine.model.loader import LoadedModel, from_model
from tests.parity.families import FAMILIES, VOCAB_SIZE, build_family
from tests.tiny_models import generate, greedy, make_core, reference_greedy, tiny_llama

NUM_TOKENS = 14
NUM_PROMPTS = 32

pytestmark = pytest.mark.parametrize("family", sorted(FAMILIES))


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, 44, (NUM_PROMPTS,), generator=generator).tolist()
    return [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


PROMPTS = _prompts()


@cache
def expected(family: str) -> list[list[int]]:
    """What `transformers.generate` writes, one prompt at a time."""
    return reference_greedy(build_family(family), PROMPTS, NUM_TOKENS)


@cache
def target(family: str) -> LoadedModel:
    """The family's model, loaded once."""
    return from_model(build_family(family))


def good_draft(family: str) -> LoadedModel:
    """A draft that is always right."""
    return from_model(build_family(family))


def random_draft() -> LoadedModel:
    """A draft that is nearly always wrong."""
    return from_model(tiny_llama(9, vocab=VOCAB_SIZE))


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_batched(family: str, batch: int) -> None:
    core = make_core(target(family), max_num_seqs=batch)
    count = max(batch, 5)
    assert generate(core, PROMPTS[:count], greedy(NUM_TOKENS)) == expected(family)[:count]


@pytest.mark.parametrize("k", range(1, 9))
def test_any_draft_length(family: str, k: int) -> None:
    for draft in (good_draft(family), random_draft()):
        core = make_core(target(family), draft, speculation=k)
        assert generate(core, PROMPTS[:3], greedy(NUM_TOKENS)) == expected(family)[:3]


def test_chunked_cached_and_preempted_with_drafts(family: str) -> None:
    core = make_core(
        target(family),
        random_draft(),
        speculation=3,
        num_blocks=20,
        max_num_batched_tokens=24,
        max_model_len=64,
    )
    assert generate(core, PROMPTS[:8], greedy(NUM_TOKENS)) == expected(family)[:8]
    assert core.stats().num_preemptions > 0, "the pool was meant to be too small"
    for _ in range(2):
        assert generate(core, PROMPTS[:1], greedy(NUM_TOKENS)) == expected(family)[:1]
    assert core.stats().num_prefix_hit_tokens > 0, "the second time was meant to hit the cache"
    assert core.kv.usage == 0.0
