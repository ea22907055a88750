"""A linear layer for few rows against float64, for every way of cutting up the weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kernels.skinny_config import (
    CANDIDATES,
    MAX_ROWS,
    MEASURED,
    SkinnyConfig,
    candidates,
    choose_config,
    padded_rows,
)
from kernels.skinny_linear import skinny_linear, skinny_linear_reference
from tests.kernels.devices import DEVICES

TOLERANCES = [
    pytest.param((torch.float32, 1e-5, 1e-5), id="float32"),
    pytest.param((torch.bfloat16, 1e-2, 1e-2), id="bfloat16"),
    pytest.param((torch.float16, 2e-3, 2e-3), id="float16"),
]
SMALL = [
    SkinnyConfig("dot", 16, 32, num_stages=2),
    SkinnyConfig("dot", 32, 16, split_k=3, num_stages=2),
    SkinnyConfig("vector", 8, 32, num_stages=1),
]
# The layers of Llama-3.1-8B, and one that no block divides.
LAYERS = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (1000, 3000)]


def inputs(
    rows: int, columns: int, depth: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, a weight that keeps its size, and a bias."""
    x = torch.randn(rows, depth, device=device).to(dtype)
    weight = (torch.randn(columns, depth, device=device) / depth**0.5).to(dtype)
    return x, weight, torch.randn(columns, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_linear_layer_of_torch_on_the_cpu(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(3, 10, 12, dtype, "cpu")
    assert torch.equal(skinny_linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("config", SMALL, ids=str)
@pytest.mark.parametrize(("columns", "depth"), [(32, 96), (37, 40), (5, 7), (64, 288)])
def test_equals_reference(
    columns: int,
    depth: int,
    config: SkinnyConfig,
    tolerance: tuple[torch.dtype, float, float],
    device: str,
) -> None:
    from kernels.skinny_linear_triton import skinny_linear_triton

    dtype, atol, rtol = tolerance
    if dtype == torch.bfloat16 and device == "cpu" and config.kind == "dot":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    for rows in (0, 1) if config.kind == "vector" else (0, 1, 5, 17):
        x, weight, bias = inputs(rows, columns, depth, dtype, device)
        for added in (None, bias):
            ours = skinny_linear_triton(x, weight, added, config)
            theirs = skinny_linear_reference(x, weight, added)
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", SMALL, ids=str)
def test_takes_rows_that_lie_apart(config: SkinnyConfig, device: str) -> None:
    from kernels.skinny_linear_triton import skinny_linear_triton

    x, weight, _ = inputs(1 if config.kind == "vector" else 2, 24, 128, torch.float16, device)
    x, weight = x[:, 32:96], weight[:, :64]
    ours = skinny_linear_triton(x, weight, None, config)
    theirs = skinny_linear_reference(x, weight)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_repeats_itself_bit_by_bit(device: str) -> None:
    from kernels.skinny_linear_triton import skinny_linear_triton

    x, weight, bias = inputs(4, 48, 96, torch.float16, device)
    first, second = (skinny_linear_triton(x, weight, bias, SMALL[1]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_refuses_what_does_not_fit(device: str) -> None:
    from kernels.skinny_linear_triton import skinny_linear_triton

    x, weight, _ = inputs(3, 16, 32, torch.bfloat16, device)
    with pytest.raises(ValueError, match="does not fit"):
        skinny_linear_triton(x[:, :16], weight)
    with pytest.raises(ValueError, match="does not fit"):
        skinny_linear_triton(x.float(), weight)
    with pytest.raises(ValueError, match="dense"):
        skinny_linear_triton(x, weight.t().contiguous().t())
    with pytest.raises(ValueError, match="at most 64"):
        skinny_linear_triton(x.repeat(22, 1), weight)
    with pytest.raises(ValueError, match="for one row"):
        skinny_linear_triton(x, weight, None, SMALL[2])


def test_rows_share_configurations() -> None:
    assert [padded_rows(rows) for rows in (1, 2, 16, 17, 33, 64)] == [1, 16, 16, 32, 64, 64]
    with pytest.raises(ValueError, match="at most 64"):
        padded_rows(65)


@pytest.mark.parametrize(("columns", "depth"), LAYERS)
def test_every_multiprocessor_of_a_hopper_gpu_gets_a_program(columns: int, depth: int) -> None:
    for rows in range(1, MAX_ROWS + 1):
        config = choose_config(rows, columns, depth)
        num_programs = -(-columns // config.block_n) * config.split_k
        assert num_programs >= min(96, columns // 32)
        assert config.kind == "dot" or rows == 1


def test_candidates_are_those_that_fit() -> None:
    assert candidates(1) == list(CANDIDATES)
    assert {config.kind for config in candidates(2)} == {"dot"}
    assert set(candidates(64)) < set(candidates(16)) < set(candidates(1))


def test_a_measurement_decides_for_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    won = replace(choose_config(5, 4096, 4096), num_stages=7)
    monkeypatch.setitem(MEASURED, (16, 4096, 4096), won)
    assert choose_config(5, 4096, 4096) == choose_config(16, 4096, 4096) == won
    assert choose_config(17, 4096, 4096) != won
    assert choose_config(5, 4096, 4097) != won


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 16, 24, 48, 64])
@pytest.mark.parametrize(("columns", "depth"), LAYERS)
def test_equals_reference_at_the_sizes_of_an_8b_model(columns: int, depth: int, rows: int) -> None:
    x, weight, bias = inputs(rows, columns, depth, torch.bfloat16, "cuda")
    ours = skinny_linear(x, weight, bias)
    theirs = skinny_linear_reference(x, weight, bias, torch.float32)
    torch.testing.assert_close(ours.float(), theirs, atol=1e-2, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 16, 32, 64])
def test_every_candidate_is_right(rows: int) -> None:
    x, weight, bias = inputs(rows, 4096, 4096, torch.bfloat16, "cuda")
    theirs = skinny_linear_reference(x, weight, bias, torch.float32)
    for config in candidates(rows):
        ours = skinny_linear(x, weight, bias, config=config)
        torch.testing.assert_close(ours.float(), theirs, atol=1e-2, rtol=1e-2, msg=str(config))
