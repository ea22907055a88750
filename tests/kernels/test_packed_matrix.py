"""Products with reordered weights are those of plain ones, whatever the rows and threads."""

from __future__ import annotations

import pytest
import torch

from kernels.packed_matrix import can_pack, multiply_packed, pack_matrix, serves

TOLERANCES = [
    pytest.param((torch.float32, 1e-6), id="float32"),
    pytest.param((torch.bfloat16, 4e-3), id="bfloat16"),
]
pytestmark = pytest.mark.skipif(not serves(torch.float32), reason="no C compiler here")


@pytest.fixture(params=[1, 3])
def _threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize(
    ("outputs", "depth", "is_paired"),
    [(1, 2, False), (33, 10, False), (64, 32, True), (70, 14, True), (2000, 1024, False)],
)
def test_equals_the_plain_product(
    outputs: int, depth: int, is_paired: bool, tolerance: tuple[torch.dtype, float]
) -> None:
    dtype, bound = tolerance
    weight = torch.randn(outputs, depth).to(dtype)
    matrix = pack_matrix(weight, is_paired=is_paired)
    for num_rows in (0, 1, 2, 3, 8, 9, 17, 130):
        x = torch.randn(num_rows, depth).to(dtype)
        ours = multiply_packed(x, matrix)
        assert (ours.shape, ours.dtype) == ((num_rows, outputs), dtype)
        expected = x.double() @ weight.double().T
        distance = (ours.double() - expected).norm()
        assert distance <= bound * expected.norm(), num_rows


@pytest.mark.parametrize("is_paired", [False, True])
def test_rows_give_the_same_beside_others(is_paired: bool) -> None:
    matrix = pack_matrix(torch.randn(96, 50), is_paired=is_paired)
    x = torch.randn(140, 50)
    together = multiply_packed(x, matrix)
    for row in (0, 7, 128, 139):
        assert torch.equal(multiply_packed(x[row : row + 1], matrix)[0], together[row])


def test_takes_rows_with_gaps_and_in_any_shape() -> None:
    weight, x = torch.randn(40, 16), torch.randn(2, 3, 32)
    matrix = pack_matrix(weight)
    for rows in (x[..., :16], x[..., ::2]):
        torch.testing.assert_close(multiply_packed(rows, matrix), rows @ weight.T)


def test_bias_is_added_in_its_outputs_order() -> None:
    weight, bias = torch.randn(70, 8), torch.randn(70)
    for is_paired in (False, True):
        matrix = pack_matrix(weight, is_paired=is_paired).with_bias(bias)
        x = torch.randn(3, 8)
        torch.testing.assert_close(multiply_packed(x, matrix), x @ weight.T + bias)


def test_other_types_and_sizes_are_refused() -> None:
    matrix = pack_matrix(torch.randn(8, 6))
    for wrong in (torch.randn(2, 6).bfloat16(), torch.randn(2, 5)):
        with pytest.raises(RuntimeError, match="rows of"):
            multiply_packed(wrong, matrix)
    assert not can_pack(torch.zeros(4, 4, dtype=torch.float64))
    assert not can_pack(torch.zeros(4, 3, dtype=torch.bfloat16))
    assert not can_pack(torch.zeros(4, 4, device="meta"))


def test_numbers_that_are_none_stay_none() -> None:
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    product = multiply_packed(x, pack_matrix(torch.randn(40, 8)))
    assert product[1].isnan().all()
    assert not product[[0, 2]].isnan().any()
