"""Keys and values land in their slots, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from kernels.kv_cache_write import kv_cache_write, kv_cache_write_reference

BLOCK_SIZE = 4
NUM_BLOCKS = 6


def make_caches(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Caches whose every element says that it was not written."""
    key_cache = torch.full((NUM_BLOCKS, BLOCK_SIZE, 2, 8), float("nan"), dtype=dtype)
    return key_cache, torch.full((NUM_BLOCKS, BLOCK_SIZE, 2, 6), float("nan"), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slots", [[], [9], [4, 5, 6, 7, 8], [23, 4, 11, 5, 16]])
def test_equals_reference(slots: list[int], dtype: torch.dtype) -> None:
    # Heads before tokens in memory, as models give them.
    key = torch.randn(2, len(slots), 8).to(dtype).transpose(0, 1)
    value = torch.randn(2, len(slots), 6).to(dtype).transpose(0, 1)
    slot_mapping = torch.tensor(slots, dtype=torch.int64)
    written, expected = make_caches(dtype), make_caches(dtype)
    kv_cache_write(key, value, *written, slot_mapping)
    kv_cache_write_reference(key, value, *expected, slot_mapping)
    for ours, theirs in zip(written, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, equal_nan=True)
        assert int((~ours.isnan()).flatten(2).all(2).sum()) == len(slots)


def test_padding_rows_share_scratch_slots() -> None:
    key_cache, value_cache = make_caches(torch.float32)
    key, value = torch.ones(3, 2, 8), torch.ones(3, 2, 6)
    kv_cache_write(key, value, key_cache, value_cache, torch.tensor([0, 0, 9]))
    assert key_cache.flatten(0, 1)[[0, 9]].eq(1.0).all()
    assert key_cache.flatten(0, 1)[1:9].isnan().all()


def test_refuses_another_dtype() -> None:
    key_cache, value_cache = make_caches(torch.float16)
    key, value = torch.ones(1, 2, 8), torch.ones(1, 2, 6)
    with pytest.raises(RuntimeError, match="dtype"):
        kv_cache_write(key, value, key_cache, value_cache, torch.tensor([5]))
