"""The kernel of `kernels/kv_cache_write.py`: one launch for all keys and values of a pass.

A program copies up to `BLOCK` elements of one token's key and as many of its value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.launch import overlap_options

_BLOCK = 1024


def kv_cache_write_triton(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Do what `kv_cache_write` does; key and value have a dense last dimension.

    Raises:
        RuntimeError: keys or values have another dtype than their cache.
    """
    if key.dtype != key_cache.dtype or value.dtype != value_cache.dtype:
        raise RuntimeError(
            f"Keys and values of dtype {key.dtype} and {value.dtype} do not fit caches of "
            f"dtype {key_cache.dtype} and {value_cache.dtype}."
        )
    num_tokens, num_heads, head_dim = key.shape
    value_dim = value.shape[2]
    if num_tokens == 0:
        return
    width = num_heads * max(head_dim, value_dim)
    block = min(_BLOCK, triton.next_power_of_2(width))
    kv_cache_write_kernel[(num_tokens, triton.cdiv(width, block))](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        VALUE_DIM=value_dim,
        BLOCK=block,
        **overlap_options(key),
    )


@triton.jit  # type: ignore[untyped-decorator]
def kv_cache_write_kernel(
    key: tl.tensor,
    value: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,
    key_token_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_token_stride: tl.tensor,
    value_head_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """Grid: (tokens, blocks of one token's elements)."""
    if OVERLAPS:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)

    in_key = index < NUM_HEADS * HEAD_DIM
    source = token * key_token_stride + (index // HEAD_DIM).to(tl.int64) * key_head_stride
    keys = tl.load(key + source + index % HEAD_DIM, mask=in_key)
    in_value = index < NUM_HEADS * VALUE_DIM
    source = token * value_token_stride + (index // VALUE_DIM).to(tl.int64) * value_head_stride
    values = tl.load(value + source + index % VALUE_DIM, mask=in_value)

    tl.store(key_cache + slot * (NUM_HEADS * HEAD_DIM) + index, keys, mask=in_key)
    tl.store(value_cache + slot * (NUM_HEADS * VALUE_DIM) + index, values, mask=in_value)
