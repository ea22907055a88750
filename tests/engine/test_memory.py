"""The KV cache leaves room for the decode loop's tables and for recorded passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.kv_cache.storage import bytes_per_block
from engine.model.loader import LoadedModel, from_model
from engine.runner import memory
from engine.runner.buckets import buckets_up_to
from engine.runner.device_pass import MOST_RECORDED_ROWS
from engine.runner.loop_memory import decode_loop_bytes, expected_graphs
from engine.runner.loop_setup import make_decode_loop
from engine.runner.memory import num_kv_cache_blocks, sampling_bytes
from engine.runner.model_runner import ModelRunner
from tests.tiny_models import VOCAB, tiny_llama

MAX_LEN = 512
PASS_BYTES = 3_000_000


def settings(**options: Any) -> EngineConfig:
    """Make settings for a few requests."""
    config = apply_options(EngineConfig(), {"max_num_seqs": 4, "block_size": 4, **options})
    return config.on_device("cuda")


def as_if_on_gpu(vocab: int = VOCAB) -> LoadedModel:
    """A model that says it is on a GPU."""
    return replace(from_model(tiny_llama(vocab=vocab)), device=torch.device("cuda"))


def loop_bytes(vocab: int = VOCAB, num_models: int = 1, **options: Any) -> int:
    """Count for models that differ in nothing."""
    models = [as_if_on_gpu(vocab)] * num_models
    return decode_loop_bytes(settings(**options), models, MAX_LEN, PASS_BYTES)


def test_without_a_loop_nothing_is_kept_free() -> None:
    assert loop_bytes(decode_ahead="off") == 0
    model = from_model(tiny_llama())
    assert decode_loop_bytes(settings(), [model], MAX_LEN, PASS_BYTES) == 0


def test_three_tables_of_the_vocabulary_are_counted_for_every_slot() -> None:
    wider = loop_bytes(vocab=VOCAB + 1000, graphs="eager") - loop_bytes(graphs="eager")
    assert wider == (4 + 1) * 3 * 4 * 1000


def test_tables_hold_what_a_loop_allocates() -> None:
    loaded = from_model(tiny_llama())
    config = settings(decode_ahead="on")
    runner = ModelRunner(loaded, 9, 4, 64)
    state = make_decode_loop(config, runner, None, max_model_len=MAX_LEN)._state
    tensors = [getattr(state, name) for name in type(state).__dataclass_fields__]
    held = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    assert 0 < held <= decode_loop_bytes(config, [loaded], MAX_LEN, PASS_BYTES)


def test_graphs_keep_the_largest_passes_logits_and_activations() -> None:
    lazy, eager = loop_bytes(max_num_batched_tokens=8), loop_bytes(graphs="eager")
    graphs = expected_graphs(settings(max_num_batched_tokens=8), 1)
    # Passes with prompts have all of the 8 tokens.
    rest = lazy - eager - 4 * VOCAB * 4 - PASS_BYTES
    assert rest > 0
    assert rest % graphs == 0
    more_rows = loop_bytes(draft="ngram", speculation=3, max_num_batched_tokens=8)
    # Each of four requests has up to three drafts more to verify: 16 rows in all.
    assert more_rows - lazy >= 12 * VOCAB * 4 + PASS_BYTES * 8 // 8


def test_graphs_are_expected_for_every_bucket_pass_and_way_of_sampling() -> None:
    num_buckets, of_prompts = len(buckets_up_to(4)), len(buckets_up_to(100))
    small = settings(max_num_batched_tokens=100)
    assert expected_graphs(small, 1) == (num_buckets + of_prompts) * 2
    speculating = settings(max_num_batched_tokens=100, draft="org/draft", speculation=3)
    assert expected_graphs(speculating, 1) == (num_buckets * 2 + of_prompts) * 2
    assert expected_graphs(speculating, 2) == (num_buckets * 4 + of_prompts * 2) * 2


def test_prompts_longer_than_what_is_recorded_count_as_much() -> None:
    of_prompts = len(buckets_up_to(MOST_RECORDED_ROWS))
    expected = (len(buckets_up_to(4)) + of_prompts) * 2
    assert expected_graphs(settings(max_num_batched_tokens=8192), 1) == expected


@pytest.mark.parametrize("graphs", ["eager", "lazy"])
def test_the_cache_gets_what_all_others_leave(graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    total, in_use = 2**30, 2**28
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - in_use, total))
    monkeypatch.setattr(memory, "pass_bytes", lambda config, loaded: PASS_BYTES)
    model = as_if_on_gpu()
    config = settings(graphs=graphs, memory_utilization=0.5)
    others = in_use + PASS_BYTES + sampling_bytes(config, model) + loop_bytes(graphs=graphs)
    block_bytes = bytes_per_block(model.layers, 4, model.dtype)
    num_blocks = num_kv_cache_blocks(config, [model], max_model_len=MAX_LEN)
    assert num_blocks == (total // 2 - others) // block_bytes
