"""Normalised rows against transformers' layers, and the kernel against them but for rounding."""

from __future__ import annotations

import pytest
import torch

from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_reference
from tests.kernels.devices import DEVICES

EPSILON = 1e-5
# One unit in the last place of the product and of what was rounded before it.
TOLERANCES = [
    pytest.param((torch.float32, 2e-6, 2e-6), id="float32"),
    pytest.param((torch.bfloat16, 1e-6, 1.6e-2), id="bfloat16"),
    pytest.param((torch.float16, 1e-6, 2e-3), id="float16"),
]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of unlike sizes, a residual, and a weight around 1."""
    scales = torch.linspace(0.1, 20.0, max(1, shape[0]), device=device)[: shape[0]]
    hidden = torch.randn(shape, device=device) * scales.view(-1, *[1] * (len(shape) - 1))
    weight = 1.0 + 0.2 * torch.randn(shape[-1], device=device)
    return hidden.to(dtype), torch.randn(shape, device=device).to(dtype), weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_gemma", [False, True])
def test_is_the_layer_of_transformers(is_gemma: bool, dtype: torch.dtype) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    hidden, residual, weight = inputs((3, 5, 24), dtype, "cpu")
    layer = (GemmaRMSNorm if is_gemma else LlamaRMSNorm)(24, EPSILON).to(dtype)
    layer.weight.data.copy_(weight)
    with torch.inference_mode():
        assert torch.equal(rms_norm_reference(hidden, weight, EPSILON, is_gemma), layer(hidden))
        normed, added = add_rms_norm(hidden, residual, weight, EPSILON, is_gemma=is_gemma)
        assert torch.equal(added, hidden + residual)
        assert torch.equal(normed, layer(hidden + residual))


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(3, 24), (1, 1, 320), (2, 5, 33), (0, 16), (4, 1)])
@pytest.mark.parametrize("is_gemma", [False, True])
def test_a_cpu_gives_what_the_reference_gives(
    is_gemma: bool, shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float]
) -> None:
    dtype, atol, rtol = tolerance
    hidden, _, weight = inputs(shape, dtype, "cpu")
    for rows in (hidden, torch.zeros_like(hidden), hidden.new_full(shape, float("nan"))):
        ours = rms_norm(rows, weight, EPSILON, is_gemma=is_gemma)
        theirs = rms_norm_reference(rows, weight, EPSILON, is_gemma)
        assert (ours.dtype, ours.shape) == (dtype, rows.shape)
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol, equal_nan=True)
    apart = torch.cat([hidden, hidden], dim=-1)[..., : shape[-1]]
    ours = rms_norm(apart, weight, EPSILON, is_gemma=is_gemma)
    theirs = rms_norm_reference(hidden, weight, EPSILON, is_gemma)
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)


def check(shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float], device: str) -> None:
    """Compare every variant of the kernel."""
    from kernels.rms_norm_triton import rms_norm_triton

    dtype, atol, rtol = tolerance
    hidden, residual, weight = inputs(shape, dtype, device)
    for is_gemma in (False, True):
        for addend in (None, residual):
            normed, added = rms_norm_triton(hidden, addend, weight, EPSILON, is_gemma)
            expected = hidden if addend is None else hidden + addend
            # The interpreter cuts bfloat16 off where a GPU rounds.
            cut = dtype == torch.bfloat16 and device == "cpu"
            torch.testing.assert_close(added, expected, atol=0, rtol=8e-3 if cut else 0)
            theirs = rms_norm_reference(added, weight, EPSILON, is_gemma)
            torch.testing.assert_close(normed, theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(0, 16), (1, 16), (5, 37), (2, 3, 64), (3, 1100)])
def test_kernel_equals_reference(
    shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float], device: str
) -> None:
    check(shape, tolerance, device)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_takes_rows_that_lie_apart(device: str) -> None:
    from kernels.rms_norm_triton import rms_norm_triton

    hidden, residual, weight = inputs((4, 32), torch.float32, device)
    ours = rms_norm_triton(hidden[:, :16], residual[:, 16:], weight[:16], EPSILON, False)
    added = hidden[:, :16] + residual[:, 16:]
    theirs = rms_norm_reference(added, weight[:16], EPSILON, False)
    torch.testing.assert_close(ours, (theirs, added), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_refuses_what_does_not_fit(device: str) -> None:
    from kernels.rms_norm_triton import rms_norm_triton

    hidden, residual, weight = inputs((2, 16), torch.float32, device)
    with pytest.raises(ValueError, match="do not fit"):
        rms_norm_triton(hidden, None, weight[:8], EPSILON, False)
    with pytest.raises(ValueError, match="do not fit"):
        rms_norm_triton(hidden, residual[:1], weight, EPSILON, False)
    with pytest.raises(ValueError, match="too long"):
        rms_norm_triton(hidden.new_zeros(1, 40000), None, weight, EPSILON, False)


@pytest.mark.gpu
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 1, 4096), (1, 48, 4096), (1, 2048, 2048), (1, 64, 8192)])
def test_kernel_equals_reference_at_real_sizes(
    shape: tuple[int, ...], tolerance: tuple[torch.dtype, float, float]
) -> None:
    check(shape, tolerance, "cuda")
