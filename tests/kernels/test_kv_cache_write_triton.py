"""The kernel that writes keys and values leaves what the reference leaves."""

from __future__ import annotations

import pytest
import torch

from kernels.kv_cache_write import kv_cache_write, kv_cache_write_reference
from tests.kernels.devices import DEVICES


def check(
    key: torch.Tensor, value: torch.Tensor, slots: list[int], num_blocks: int, block_size: int
) -> None:
    """Compare whole caches, whose every element says whether it was written."""
    from kernels.kv_cache_write_triton import kv_cache_write_triton

    slot_mapping = torch.tensor(slots, dtype=torch.int64, device=key.device)

    def caches() -> list[torch.Tensor]:
        shape = (num_blocks, block_size)
        return [key.new_full((*shape, *x.shape[1:]), float("nan")) for x in (key, value)]

    written, expected = caches(), caches()
    kv_cache_write_triton(key, value, *written, slot_mapping)
    kv_cache_write_reference(key, value, *expected, slot_mapping)
    for ours, theirs in zip(written, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, equal_nan=True)
        assert int((~ours.isnan()).flatten(2).all(2).sum()) == len(slots)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slots", [[], [9], [23, 4, 11, 5, 16]])
def test_equals_reference(slots: list[int], dtype: torch.dtype, device: str) -> None:
    # Heads before tokens in memory, as models give them; dimensions that are no powers of two.
    key = torch.randn(3, len(slots), 12, device=device).to(dtype).transpose(0, 1)
    value = torch.randn(3, len(slots), 6, device=device).to(dtype).transpose(0, 1)
    check(key, value, slots, num_blocks=6, block_size=4)


@pytest.mark.parametrize("device", DEVICES)
def test_takes_keys_that_are_slices_of_a_fused_projection(device: str) -> None:
    fused = torch.randn(4, 10 * 8, device=device).to(torch.bfloat16)
    key = fused[:, 32:48].view(4, 2, 8)
    value = fused[:, 48:64].view(4, 2, 8)
    check(key, value, [3, 1, 7, 12], num_blocks=4, block_size=4)


@pytest.mark.parametrize("device", DEVICES)
def test_takes_more_elements_than_one_program(device: str) -> None:
    key = torch.randn(2, 20, 64, device=device)
    check(key, torch.randn(2, 20, 32, device=device), [5, 2], num_blocks=2, block_size=4)


@pytest.mark.parametrize("device", DEVICES)
def test_refuses_another_dtype(device: str) -> None:
    from kernels.kv_cache_write_triton import kv_cache_write_triton

    cache = torch.zeros(2, 4, 2, 8, dtype=torch.float16, device=device)
    key = torch.ones(1, 2, 8, device=device)
    slot_mapping = torch.tensor([5], device=device)
    with pytest.raises(RuntimeError, match="dtype"):
        kv_cache_write_triton(key, key, cache, cache.clone(), slot_mapping)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 5, 64, 2048])
def test_equals_reference_at_the_size_of_an_8b_model(num_tokens: int) -> None:
    fused = torch.randn(num_tokens, 48 * 128, device="cuda").to(torch.bfloat16)
    key = fused[:, 4096:5120].view(num_tokens, 8, 128)
    value = fused[:, 5120:].view(num_tokens, 8, 128)
    slots = torch.randperm(256 * 16)[:num_tokens].tolist()
    check(key, value, slots, num_blocks=256, block_size=16)


@pytest.mark.gpu
@pytest.mark.parametrize("is_dense", [True, False])
def test_op_takes_any_strides_on_the_gpu(is_dense: bool) -> None:
    key = torch.randn(3, 2, 8, device="cuda")
    if not is_dense:
        key = key.transpose(1, 2).contiguous().transpose(1, 2)
    assert (key.stride(-1) == 1) == is_dense
    slots = torch.tensor([6, 1, 3], device="cuda")
    written = [key.new_zeros(2, 4, 2, 8) for _ in range(2)]
    expected = [cache.clone() for cache in written]
    kv_cache_write(key, key, *written, slots)
    kv_cache_write_reference(key, key, *expected, slots)
    assert all(map(torch.equal, written, expected))
