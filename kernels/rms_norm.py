"""Root-mean-square normalisation, with the residual's addition before it.

    h = x + residual                        rounded to x's dtype; it is the next residual
    n = h / sqrt(mean(h^2) + epsilon)       in float32 (Zhang & Sennrich, 1910.07467, sec. 3)
    y = weight * n                          n rounded first, as transformers' LlamaRMSNorm does
    y = (1 + weight) * n                    in float32, rounded once, as its GemmaRMSNorm does

Shapes: x, residual and y [..., H], weight [H], all of one dtype.
"""

from __future__ import annotations

import torch

from kernels.rms_norm_cpu import can_serve, rms_norm_on_cpu


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, *, is_gemma: bool = False
) -> torch.Tensor:
    """Normalise each row.

    Args:
        hidden: [..., hidden_size].
        weight: [hidden_size], hidden's dtype.
        epsilon: added to the mean square.
        is_gemma: the weight is what is added to 1.

    Returns:
        hidden's shape and dtype, contiguous.
    """
    if hidden.is_cuda:
        from kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(hidden, None, weight, epsilon, is_gemma)[0]
    if can_serve(hidden) and not torch.compiler.is_compiling():
        return rms_norm_on_cpu(hidden, weight, epsilon, is_gemma)
    return rms_norm_reference(hidden, weight, epsilon, is_gemma)


def add_rms_norm(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    *,
    is_gemma: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the residual and normalise each row of the sum.

    Args:
        hidden: see `rms_norm`, as the last three.
        residual: hidden's shape and dtype.
        weight: [hidden_size].
        epsilon: added to the mean square.
        is_gemma: the weight is what is added to 1.

    Returns:
        The normalised sum and the sum, both of hidden's shape and dtype, contiguous.
    """
    if hidden.is_cuda:
        from kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(hidden, residual, weight, epsilon, is_gemma)
    added = hidden + residual
    return rms_norm_reference(added, weight, epsilon, is_gemma), added


def rms_norm_reference(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, is_gemma: bool
) -> torch.Tensor:
    """Do what `rms_norm` does in torch; also the path of the CPU."""
    precise = hidden.float()
    normed = precise * torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + epsilon)
    if is_gemma:
        return (normed * (1.0 + weight.float())).to(hidden.dtype)
    return weight * normed.to(hidden.dtype)
