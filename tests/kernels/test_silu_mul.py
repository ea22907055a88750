"""Gated rows against what torch's two operations give."""

from __future__ import annotations

import pytest
import torch

from kernels.silu_mul import silu_mul, silu_mul_reference
from tests.kernels.devices import DEVICES

# One unit in the last place of the product and of what was rounded before it.
TOLERANCES = [
    pytest.param((torch.float32, 1e-6, 1e-5), id="float32"),
    pytest.param((torch.bfloat16, 1e-6, 1.6e-2), id="bfloat16"),
    pytest.param((torch.float16, 1e-6, 2e-3), id="float16"),
]


def check(shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float], device: str) -> None:
    """Compare the kernel on two tensors and on the halves of one."""
    from kernels.silu_mul_triton import silu_mul_triton

    dtype, atol, rtol = tolerance
    fused = (4 * torch.randn(*shape[:-1], 2 * shape[-1], device=device)).to(dtype)
    gate, up = fused.chunk(2, dim=-1)
    theirs = silu_mul_reference(gate, up)
    for ours in (silu_mul_triton(gate, up), silu_mul_triton(gate.contiguous(), up.contiguous())):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)


def test_is_silu_and_a_product_on_the_cpu() -> None:
    gate, up = torch.randn(2, 3, 8).to(torch.bfloat16)
    expected = (gate.float() * torch.sigmoid(gate.float())).to(torch.bfloat16) * up
    torch.testing.assert_close(silu_mul(gate, up), expected, atol=0, rtol=1.6e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(0, 16), (1, 16), (5, 37), (1, 3, 64), (2, 1500)])
def test_kernel_equals_reference(
    shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float], device: str
) -> None:
    check(shape, tolerance, device)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_survives_extremes(device: str) -> None:
    from kernels.silu_mul_triton import silu_mul_triton

    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=device)
    ours = silu_mul_triton(gate, torch.ones_like(gate))
    torch.testing.assert_close(ours, gate.clamp(min=0.0), atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_refuses_what_does_not_fit(device: str) -> None:
    from kernels.silu_mul_triton import silu_mul_triton

    gate = torch.randn(4, 4, device=device)
    with pytest.raises(ValueError, match="does not fit"):
        silu_mul_triton(gate, gate[:2])
    with pytest.raises(ValueError, match="does not fit"):
        silu_mul_triton(gate, gate.half())
    with pytest.raises(ValueError, match="dense"):
        silu_mul_triton(gate, gate.t())


@pytest.mark.gpu
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 14336), (48, 14336), (2048, 8192)])
def test_kernel_equals_reference_at_real_sizes(
    shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float]
) -> None:
    check(shape, tolerance, "cuda")
