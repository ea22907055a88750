"""The engine's words through the Triton kernels are those through torch."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from engine.model.loader import from_model
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU they are run as they are"),
    # Padding rows hold what lay in memory, and numpy, which computes here, remarks on it.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

PROMPTS = random_prompts(3, low=3, high=12)
SETTINGS = [
    greedy(5),
    seeded(6, repetition_penalty=1.3, logit_bias={7: 2.0}),
    seeded(4, temperature=0.8, top_k=9, top_p=0.9, min_p=0.01),
]


@pytest.fixture
def expected() -> list[list[int]]:
    """What synchronous steps write, through torch."""
    return generate(make_core(tiny_llama()), PROMPTS, SETTINGS)


@pytest.fixture
def triton_path(expected: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the decode loop use its kernels on the CPU, in the interpreter; notes who was called."""
    from kernels import decode_state_triton, gumbel_sample_triton, kv_cache_write_triton

    called: list[str] = []

    def put(module: str, name: str, function: Any) -> None:
        def noted(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(f"{module}.{name}", noted)

    def prepare_rows(
        state: Any, rows: Any, inputs: Any, *, block_size: int, last_token_id: int
    ) -> None:
        decode_state_triton.prepare_rows_triton(state, rows, inputs, block_size, last_token_id)

    def commit(*args: Any, accepted_limits: Any, output_counts: Any) -> None:
        decode_state_triton.commit_triton(*args, accepted_limits, output_counts)

    put("engine.runner.device_pass", "prepare_rows", prepare_rows)
    put("engine.runner.device_pass", "commit", commit)
    put("engine.runner.device_pass", "place_drafts", decode_state_triton.place_drafts_triton)
    put("engine.runner.device_pass", "gumbel_sample", gumbel_sample_triton.gumbel_sample_triton)
    put("engine.model.attention", "kv_cache_write", kv_cache_write_triton.kv_cache_write_triton)
    return called


def test_words_are_the_same(expected: list[list[int]], triton_path: list[str]) -> None:
    from kernels.paged_attention_triton import paged_attention_on_device

    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        triton_path.append("paged_attention")
        return paged_attention_on_device(*args, **kwargs)

    pair = [replace(from_model(tiny_llama()), attend=attend) for _ in range(2)]
    core = make_core(*pair, speculation=2, decode_ahead="on", max_num_seqs=3)
    assert generate(core, PROMPTS, SETTINGS) == expected
    assert set(triton_path) == {
        "prepare_rows",
        "commit",
        "place_drafts",
        "gumbel_sample",
        "kv_cache_write",
        "paged_attention",
    }
