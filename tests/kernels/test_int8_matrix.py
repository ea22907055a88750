"""int8 weights multiply as the same numbers in float64 do, on every set of instructions."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from itertools import product as combinations_of
from pathlib import Path

import pytest
import torch

from kernels import native_library, packed_matrix
from kernels.int8_matrix import pack_int8, quantise, unpack_int8
from kernels.packed_matrix import multiply_packed, serves

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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what is compiled for less than this machine has is kept for all tests."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(params=list(SETS))
def instructions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, compiled: Path
) -> Iterator[None]:
    """Compile the functions for a set of instructions."""
    less = SETS[request.param]
    if less:
        if platform.machine() not in ("x86_64", "AMD64"):
            pytest.skip("these are instructions of x86")
        monkeypatch.setattr(native_library, "_FLAGS", (*native_library._FLAGS, *less))
        monkeypatch.setenv("XDG_CACHE_HOME", str(compiled))
    _forget()
    yield
    _forget()


def _forget() -> None:
    native_library.native_library.cache_clear()
    packed_matrix._function.cache_clear()
    serves.cache_clear()


@pytest.fixture(params=[1, 3])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def product(x: torch.Tensor, weight: torch.Tensor, *, is_paired: bool = False) -> torch.Tensor:
    return multiply_packed(x, pack_int8(*quantise(weight), is_paired=is_paired))


@pytest.mark.usefixtures("instructions", "_threads")
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
    paired = (False, True) if shape[0] % 2 == 0 else (False,)
    matrices = [pack_int8(rounded, scales, is_paired=pairs) for pairs in paired]
    for rows in ((1,), (0,), (5,), (1, 1), (1, 2), (1, 41), (2, 3), (140,)):
        x = torch.randn(*rows, shape[1]).to(dtype)
        for added, matrix in combinations_of((None, bias), matrices):
            ours = multiply_packed(x, matrix.with_bias(added))
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
    torch.testing.assert_close(product(x, weight), expected)


@pytest.mark.usefixtures("instructions")
def test_what_is_no_number_stays_in_its_row() -> None:
    x = torch.randn(7, 32)
    x[1, 3], x[4, 0], x[5] = float("nan"), float("-inf"), 0.0
    ours = product(x, torch.randn(40, 32))
    assert ours[[1, 4]].isnan().all()
    assert (ours[5] == 0.0).all()
    assert ours[[0, 2, 3, 6]].isfinite().all()


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_depends_on_those_beside_it(dtype: torch.dtype, is_paired: bool) -> None:
    torch.manual_seed(2)
    weight, bias = torch.randn(200, 1100), torch.randn(200)
    x = torch.randn(150, 1100).to(dtype)
    matrix = pack_int8(*quantise(weight), is_paired=is_paired).with_bias(bias)
    together = multiply_packed(x, matrix)
    for count in range(1, 19):
        for begin in (0, 13, 120):
            rows = slice(begin, begin + count)
            assert torch.equal(multiply_packed(x[rows], matrix), together[rows])


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(30000, 320), torch.randn(3, 320)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = product(x, weight)
    for threads in (2, 3, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.equal(product(x, weight), alone)


def test_strided_rows_are_read_right() -> None:
    wide = torch.randn(4, 100)
    weight = torch.randn(48, 50)
    assert torch.equal(product(wide[:, 50:], weight), product(wide[:, 50:].clone(), weight))
    assert torch.equal(product(wide[:, ::2], weight), product(wide[:, ::2].clone(), weight))


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = torch.randn(30, 50) * torch.logspace(-8, 4, 30).unsqueeze(1)
    weight[7] = 0.0
    rounded, scales = quantise(weight)
    assert rounded.abs().amax(dim=1).tolist() == [0 if row == 7 else 127 for row in range(30)]
    off = (rounded * scales.unsqueeze(1) - weight).abs()
    assert (off <= 0.501 * scales.unsqueeze(1)).all()


@pytest.mark.parametrize("shape", [(32, 2), (34, 3), (1, 1), (50, 64)])
def test_panels_hold_every_weight(shape: tuple[int, int]) -> None:
    rounded = torch.randint(-127, 128, shape, dtype=torch.int8)
    scales = torch.rand(shape[0])
    for is_paired in {False, shape[0] % 2 == 0}:
        matrix = pack_int8(rounded, scales, is_paired=is_paired)
        held, steps = unpack_int8(matrix)
        assert torch.equal(held, rounded)
        assert torch.equal(steps, scales)
        assert matrix.panels.flatten(2).shape[1:] == (-(-shape[1] // 2), 64)


def test_types_without_a_function_are_not_served() -> None:
    assert not serves(torch.float16)
    assert not serves(torch.float64)


def test_rows_of_other_types_are_refused() -> None:
    with pytest.raises(RuntimeError, match="float16 rows of 8 by a torch.int8 weight"):
        product(torch.ones(2, 8).half(), torch.ones(4, 8))
