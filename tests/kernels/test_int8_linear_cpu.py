"""int8 weights multiply as the same numbers in float64 do, on every set of instructions."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import int8_linear_cpu, native_library
from kernels.int8_linear_cpu import from_panels, int8_linear, quantise, serves, to_panels

pytestmark = pytest.mark.skipif(
    not serves(torch.float32), reason="this machine has no C compiler for them"
)

SETS = {
    "all": (),
    "avx512 without vnni": ("-mno-avx512vnni",),
    "avx2": ("-mno-avx512f",),
    "plain C": ("-mno-avx512f", "-mno-avx2"),
}
# Rounding of activations to 16 bits, of sums and of results, by the size of all.
TOLERANCES = [
    pytest.param((torch.float32, 2e-4), id="float32"),
    pytest.param((torch.bfloat16, 8e-3), id="bfloat16"),
]


@pytest.fixture(params=list(SETS))
def instructions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Compile the function for a set of instructions."""
    less = SETS[request.param]
    if less:
        if platform.machine() not in ("x86_64", "AMD64"):
            pytest.skip("these are instructions of x86")
        monkeypatch.setattr(native_library, "_FLAGS", (*native_library._FLAGS, *less))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _forget()
    yield
    _forget()


def _forget() -> None:
    native_library.native_library.cache_clear()
    int8_linear_cpu._function.cache_clear()
    serves.cache_clear()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    rounded, scales = quantise(weight)
    return int8_linear(x, to_panels(rounded), scales, bias)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(8, 16), (33, 7), (1, 64), (300, 21), (130, 1030), (64, 1)])
def test_multiplies_as_the_same_numbers_do(
    shape: tuple[int, int], tolerance: tuple[torch.dtype, float]
) -> None:
    dtype, bound = tolerance
    torch.manual_seed(sum(shape))
    weight, bias = torch.randn(shape), torch.randn(shape[0]).to(dtype)
    rounded, scales = quantise(weight)
    exact = rounded.double() * scales.double().unsqueeze(1)
    for rows in ((1,), (0,), (5,), (1, 1), (1, 41), (2, 3)):
        x = torch.randn(*rows, shape[1]).to(dtype)
        for added in (None, bias):
            ours = int8_linear(x, to_panels(rounded), scales, added)
            expected = x.double() @ exact.T + (0.0 if added is None else added.double())
            assert ours.shape == expected.shape
            assert ours.dtype == dtype
            size = float(shape[1]) ** 0.5
            torch.testing.assert_close(ours.double(), expected, atol=bound * size, rtol=bound)


@pytest.mark.usefixtures("instructions")
def test_largest_sums_stay_right() -> None:
    weight = torch.ones(20, 4100)
    x = torch.cat([torch.ones(1, 4100), -torch.ones(1, 4100)])
    expected = torch.tensor([[4100.0], [-4100.0]]).expand(2, 20)
    torch.testing.assert_close(product(x, weight, None), expected)


@pytest.mark.usefixtures("instructions")
def test_what_is_no_number_stays_in_its_row() -> None:
    x = torch.randn(7, 32)
    x[1, 3], x[4, 0], x[5] = float("nan"), float("-inf"), 0.0
    ours = product(x, torch.randn(40, 32), None)
    assert ours[[1, 4]].isnan().all()
    assert (ours[5] == 0.0).all()
    assert ours[[0, 2, 3, 6]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_depends_on_those_beside_it(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(200, 1100), torch.randn(45, 1100).to(dtype)
    together = product(x, weight, None)
    for count in range(1, 9):
        for begin in (0, 13):
            rows = slice(begin, begin + count)
            assert torch.equal(product(x[rows], weight, None), together[rows])


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_linear_cpu, "_PRODUCTS_PER_THREAD", 1)
    weight, x = torch.randn(1000, 64), torch.randn(3, 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = product(x, weight, None)
    for threads in (2, 3, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.equal(product(x, weight, None), alone)


@pytest.mark.parametrize("num_panels", [1, 3, 20, 257])
@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_shares_cover_all_panels_once(
    num_panels: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_linear_cpu, "_PRODUCTS_PER_THREAD", 1)
    bounds = int8_linear_cpu._shares(torch.zeros(num_panels, 2, 16, 2), 4, threads)
    assert (bounds[0], bounds[-1]) == (0, num_panels)
    assert all(left < right for left, right in zip(bounds, bounds[1:], strict=False))
    assert len(bounds) - 1 <= threads


def test_strided_rows_are_read_right() -> None:
    wide = torch.randn(4, 100)
    weight = torch.randn(48, 50)
    assert torch.equal(
        product(wide[:, 50:], weight, None), product(wide[:, 50:].clone(), weight, None)
    )


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = torch.randn(30, 50) * torch.logspace(-8, 4, 30).unsqueeze(1)
    weight[7] = 0.0
    rounded, scales = quantise(weight)
    assert rounded.abs().amax(dim=1).tolist() == [0 if row == 7 else 127 for row in range(30)]
    off = (rounded * scales.unsqueeze(1) - weight).abs()
    assert (off <= 0.501 * scales.unsqueeze(1)).all()


@pytest.mark.parametrize("shape", [(16, 2), (17, 3), (1, 1), (50, 64)])
def test_panels_hold_every_weight(shape: tuple[int, int]) -> None:
    rounded = torch.randint(-127, 128, shape, dtype=torch.int8)
    panels = to_panels(rounded)
    assert panels.shape[2:] == (16, 2)
    assert torch.equal(from_panels(panels, *shape), rounded)


def test_types_without_a_function_are_not_served() -> None:
    assert not serves(torch.float16)
    assert not serves(torch.float64)
