"""Write new keys and values into the paged KV cache.

    key_cache[slot // block_size, slot % block_size] = key[t]   for slot = slot_mapping[t]

Shapes: key [T, Hkv, D], value [T, Hkv, Dv], caches [num_blocks, block_size, Hkv, D or Dv],
slot_mapping [T] int64. Knows slots and nothing of requests or block tables.
"""

from __future__ import annotations

import torch

from kernels.kv_cache_write_cpu import serves, write_rows_on_cpu


def kv_cache_write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Store each token's key and value in its slot, in place.

    Args:
        key: [num_tokens, num_kv_heads, head_dim], the cache's dtype; any strides, on a GPU with a
            dense last dimension.
        value: [num_tokens, num_kv_heads, value_head_dim].
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        value_cache: [num_blocks, block_size, num_kv_heads, value_head_dim], contiguous.
        slot_mapping: [num_tokens] int64, `block * block_size + offset`. Tokens that share a slot
            (padding rows in scratch block 0) leave either's value there, or a mixture.
    """
    if key.is_cuda and key.stride(-1) == 1 and value.stride(-1) == 1:
        from kernels.kv_cache_write_triton import kv_cache_write_triton

        kv_cache_write_triton(key, value, key_cache, value_cache, slot_mapping)
        return
    for rows, cache in ((key, key_cache), (value, value_cache)):
        if _is_copy(rows, cache) and serves():
            write_rows_on_cpu(rows, cache, slot_mapping)
        else:
            cache.flatten(0, 1).index_copy_(0, slot_mapping, rows)


def kv_cache_write_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Do what `kv_cache_write` does, one token at a time."""
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        key_cache[slot // block_size, slot % block_size] = key[token]
        value_cache[slot // block_size, slot % block_size] = value[token]


def _is_copy(rows: torch.Tensor, cache: torch.Tensor) -> bool:
    """Whether rows in a CPU's memory are moved as they are."""
    return rows.device.type == "cpu" and rows.dtype == cache.dtype and rows.stride(-1) == 1
