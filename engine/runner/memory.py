"""How many KV cache blocks fit, with both models' weights and activations counted."""

from __future__ import annotations

import logging

import psutil
import torch

from engine.config import CacheConfig, EngineConfig, parse_bytes
from engine.errors import OutOfMemoryError
from engine.kv_cache.storage import bytes_per_block
from engine.model.loader import LoadedModel
from engine.runner.input_batch import Span
from engine.runner.loop_memory import decode_loop_bytes
from engine.runner.model_runner import ModelRunner

logger = logging.getLogger(__name__)

# On a CPU the cache shares its memory with everything else on the machine.
_CPU_SHARE = 0.25
# Sampling holds the logits, their processed copy, the noise and a sorted copy, in float32.
_SAMPLING_COPIES = 4
# Token counts, prompt marks and biases of a request, per entry of the vocabulary.
_STATE_BYTES = 12


def num_kv_cache_blocks(
    config: EngineConfig, models: list[LoadedModel], *, max_model_len: int
) -> int:
    """Size the block pool that the models share.

    An explicit `kv_cache_memory` wins; otherwise it is what is free after loading, less what one
    full step needs. On a CPU no more is taken than `max_num_seqs` requests of full length need.

    Args:
        config: all settings.
        models: the target, and the draft if there is one, already in memory.
        max_model_len: prompt and answer tokens of one request at most.

    Returns:
        Blocks, the scratch block included.

    Raises:
        OutOfMemoryError: one request of `max_model_len` tokens would not fit.
    """
    cache = config.cache
    block_bytes = sum(bytes_per_block(m.layers, cache.block_size, m.dtype) for m in models)
    blocks_per_request = -(-max_model_len // cache.block_size)
    if cache.kv_cache_memory is not None:
        num_blocks = parse_bytes("kv_cache_memory", cache.kv_cache_memory) // block_bytes
    elif models[0].device.type == "cpu":
        needed = config.scheduler.max_num_seqs * blocks_per_request + 1
        num_blocks = min(needed, _free_cpu_bytes(cache) // block_bytes)
    else:
        num_blocks = _free_gpu_bytes(config, models, max_model_len) // block_bytes
    if num_blocks < blocks_per_request + 1:
        raise OutOfMemoryError(
            f"The KV cache has room for {max(0, num_blocks - 1) * cache.block_size} tokens, but "
            f"one request may have {max_model_len}: raise --kv-cache-memory to at least "
            f"{block_bytes * (blocks_per_request + 1)} bytes or lower --max-model-len."
        )
    logger.info(
        "kv_cache blocks=%d tokens=%d bytes=%d models=%d",
        num_blocks,
        (num_blocks - 1) * cache.block_size,
        num_blocks * block_bytes,
        len(models),
    )
    return num_blocks


def _free_cpu_bytes(cache: CacheConfig) -> int:
    available: int = psutil.virtual_memory().available
    return int(available * cache.memory_utilization * _CPU_SHARE)


def _free_gpu_bytes(config: EngineConfig, models: list[LoadedModel], max_model_len: int) -> int:
    device = models[0].device
    passes = [pass_bytes(config, model) for model in models]
    sampling = max(sampling_bytes(config, model) for model in models)
    loop = decode_loop_bytes(config, models, max_model_len, max(passes))
    free, total = torch.cuda.mem_get_info(device)
    in_use = total - free
    allowed = int(total * config.cache.memory_utilization)
    return allowed - in_use - max(passes) - sampling - loop


def sampling_bytes(config: EngineConfig, loaded: LoadedModel) -> int:
    """Count the sampler's copies of the largest step's logits, and its state per request."""
    rows = config.scheduler.max_num_seqs * (config.speculation.num_draft_tokens + 1)
    rows = min(rows, config.scheduler.step_tokens)
    copies = rows * loaded.vocab_size * 4 * _SAMPLING_COPIES
    return copies + config.scheduler.max_num_seqs * loaded.vocab_size * _STATE_BYTES


@torch.inference_mode()
def pass_bytes(config: EngineConfig, loaded: LoadedModel) -> int:
    """Measure what the largest pass needs beside weights and KV cache, in bytes, on CUDA.

    One pass of `max_num_batched_tokens` tokens runs over a throw-away cache.
    """
    num_tokens = config.scheduler.step_tokens
    length = min(num_tokens, loaded.max_model_len)
    block_size = config.cache.block_size
    blocks = -(-length // block_size)
    runner = ModelRunner(loaded, blocks + 1, block_size, num_tokens)
    spans = [
        Span([0] * min(length, num_tokens - begin), 0, list(range(1, blocks + 1)), 1)
        for begin in range(0, num_tokens, length)
    ]
    torch.cuda.reset_peak_memory_stats(loaded.device)
    before = torch.cuda.memory_allocated(loaded.device)
    runner.execute(spans)
    torch.cuda.synchronize(loaded.device)
    peak = torch.cuda.max_memory_allocated(loaded.device) - before
    del runner
    torch.cuda.empty_cache()
    return peak
