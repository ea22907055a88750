"""Root-mean-square norms of a model as one kernel each, where torch.compile does not fuse them.

A norm is known by what it computes, not by who wrote it: it is replaced only if our kernel gives
what its own forward gives, on made-up rows of several magnitudes. Knows nothing of architectures.
"""

from __future__ import annotations

import inspect
import logging

import torch
from torch import nn

from kernels.rms_norm import rms_norm

logger = logging.getLogger(__name__)

_CLASS_SUFFIX = "RMSNorm"
_EPSILON_NAMES = ("variance_epsilon", "eps")
_ARGUMENTS = (["hidden_states"], ["x"])
# So small that the epsilon counts, ordinary, and large.
_MAGNITUDES = (1e-3, 1.0, 30.0)
# Relative; half types round the result, and some norms round it once less.
_TOLERANCES = {torch.bfloat16: 2**-6, torch.float16: 2**-9}
_TOLERANCE = 1e-5
# What norms with other arguments or parameters are known to raise.
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError)


class FusedNorm:
    """Stands in for a norm's `forward`.

    Args:
        module: the norm; its own forward goes on with rows of another dtype than its weight's.
        weight: [hidden_size].
        epsilon: added to the mean square.
        is_gemma: the weight is what is added to 1.

    Attributes:
        epsilon: as given.
    """

    def __init__(
        self, module: nn.Module, weight: torch.Tensor, epsilon: float, *, is_gemma: bool
    ) -> None:
        self._own_forward = module.forward
        self._weight = weight
        self._is_gemma = is_gemma
        self.epsilon = epsilon

    def factors(self) -> torch.Tensor:
        """Return what normalised rows are multiplied with: [hidden_size] float32, contiguous."""
        weight = self._weight.float().contiguous()
        return weight + 1.0 if self._is_gemma else weight

    def __call__(self, hidden_states: torch.Tensor, /) -> torch.Tensor:
        """Normalise: [..., hidden_size], the same shape back."""
        if hidden_states.dtype != self._weight.dtype:
            normed: torch.Tensor = self._own_forward(hidden_states)
            return normed
        return rms_norm(hidden_states, self._weight, self.epsilon, is_gemma=self._is_gemma)


@torch.inference_mode()
def fuse_norms(model: nn.Module) -> int:
    """Let the norms of a model that our kernel can compute be computed by it, in place.

    Returns:
        How many are.
    """
    fused = 0
    for module in model.modules():
        replacement = _replacement_of(module)
        if replacement is not None:
            module.forward = replacement
            fused += 1
    logger.info("fused_norms model=%s norms=%d", type(model).__name__, fused)
    return fused


def _replacement_of(module: nn.Module) -> FusedNorm | None:
    weight = getattr(module, "weight", None)
    if not (
        type(module).__name__.endswith(_CLASS_SUFFIX)
        and isinstance(weight, nn.Parameter)
        and weight.dim() == 1
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and "forward" not in vars(module)
        and list(inspect.signature(module.forward).parameters) in _ARGUMENTS
    ):
        return None
    epsilons = [getattr(module, name, None) for name in _EPSILON_NAMES]
    epsilon = next((value for value in epsilons if isinstance(value, float)), None)
    if epsilon is None:
        return None
    for is_gemma in (False, True):
        own = FusedNorm(module, weight.data, epsilon, is_gemma=is_gemma)
        if _is_same(module, own, weight):
            return own
    return None


def _is_same(module: nn.Module, own: FusedNorm, weight: torch.Tensor) -> bool:
    generator = torch.Generator(weight.device).manual_seed(0)
    shape = (len(_MAGNITUDES), weight.shape[0])
    rows = torch.randn(shape, generator=generator, device=weight.device)
    rows = (rows * torch.tensor(_MAGNITUDES, device=weight.device)[:, None]).to(weight.dtype)
    try:
        expected, actual = module(rows), own(rows)
    except _FAILURES:
        return False
    tolerance = _TOLERANCES.get(weight.dtype, _TOLERANCE)
    return (
        isinstance(expected, torch.Tensor)
        and (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
        and torch.allclose(actual.float(), expected.float(), rtol=tolerance, atol=1e-6)
    )
