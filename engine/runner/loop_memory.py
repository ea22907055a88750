"""What a decode loop will hold on a GPU beside weights and KV cache: counted before it is there.

Tables that stay in place are exact; what recordings take is an estimate from above for batches that
draft evenly, since which shapes will come nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.config import EAGER, EngineConfig
from engine.model.loader import LoadedModel
from engine.runner.buckets import buckets_up_to, round_up
from engine.runner.device_pass import MOST_RECORDED_ROWS
from engine.runner.loop_setup import decodes_ahead
from engine.sampling_params import MAX_DRAFT_TOKENS

# Penalties need two tables of the vocabulary per slot, biases one, made when first needed.
_NUM_TABLES = 3
_TABLE_BYTES = 4
# A slot's drafts, its number of tokens and its settings, in generous words of 8 bytes.
_SLOT_BYTES = 8 * (MAX_DRAFT_TOKENS + 16)
# The driver's own memory for a recording of some hundred kernels, which torch does not count.
_GRAPH_BYTES = 3 * 2**20
# Recordings of a shape: greedy and sampled.
_NUM_TRAITS = 2


def decode_loop_bytes(
    config: EngineConfig, models: Sequence[LoadedModel], max_model_len: int, pass_bytes: int
) -> int:
    """Count what a decode loop and its graphs will hold, in bytes; 0 where there is no loop.

    Args:
        config: all settings.
        models: the target, and the draft if there is one.
        max_model_len: tokens of a request at most.
        pass_bytes: activations of a pass of `max_num_batched_tokens` tokens.
    """
    target = models[0]
    if not decodes_ahead(config, target.device):
        return 0
    num_seqs = config.scheduler.max_num_seqs
    max_blocks = -(-max_model_len // config.cache.block_size)
    tables = _NUM_TABLES * _TABLE_BYTES * target.vocab_size
    held = (num_seqs + 1) * (tables + 4 * max_blocks + _SLOT_BYTES)
    if config.runner.graphs == EAGER:
        return held
    verified = round_up(num_seqs * (config.speculation.num_draft_tokens + 1))
    logits = verified * target.vocab_size * target.dtype.itemsize
    # Graphs share one pool, apart from everybody else's, so the largest pass counts once more.
    most_rows = max(verified, _recorded_prompt_rows(config))
    activations = pass_bytes * most_rows // config.scheduler.step_tokens
    return held + logits + activations + expected_graphs(config, len(models)) * _GRAPH_BYTES


def expected_graphs(config: EngineConfig, num_models: int) -> int:
    """Count recordings: everybody drafts as much as may be, or nothing; prompts of any length."""
    drafts = config.speculation.num_draft_tokens > 0
    verify_passes = 2 if drafts else 1
    # A draft's first pass has a shape of its own.
    draft_passes = 2 if drafts and num_models > 1 else 0
    num_buckets = len(buckets_up_to(config.scheduler.max_num_seqs))
    with_prompts = len(buckets_up_to(_recorded_prompt_rows(config))) * num_models
    return (num_buckets * (verify_passes + draft_passes) + with_prompts) * _NUM_TRAITS


def _recorded_prompt_rows(config: EngineConfig) -> int:
    return min(MOST_RECORDED_ROWS, config.scheduler.step_tokens)
