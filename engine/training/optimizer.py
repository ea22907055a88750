"""The optimisers of a training run and their shared learning-rate schedule.

Knows Muon for hidden matrices, AdamW for the rest, and a trapezoid over progress in [0, 1].
Refuses to know what progress is made of (steps or minutes) and what is trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak learning rates and the shape of the schedule.

    Attributes:
        matrix: Peak rate of Muon (update scaled by sqrt(max(1, rows / columns))).
        other: Peak rate of AdamW for embeddings and norms.
        warmup_steps: Steps of linear warm-up.
        decay_from: Progress at which the linear decay to zero begins.
        weight_decay: Decoupled decay of the hidden matrices.
    """

    matrix: float = 0.02
    other: float = 3e-3
    warmup_steps: int = 40
    decay_from: float = 0.4
    weight_decay: float = 0.02

    def factor(self, step: int, progress: float) -> float:
        """Give the fraction of the peak rate at `step`, `progress` of the budget spent."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cool = min(1.0, max(0.0, 1.0 - progress) / (1.0 - self.decay_from))
        return min(warm, cool)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Push the singular values of each matrix [n, rows, columns] towards one.

    Five steps of the quintic Newton-Schulz iteration (Jordan et al. 2024), in the input's dtype:
    CPUs without matrix units multiply float32 faster than bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if is_tall else x


class Muon:
    """Momentum, orthogonalised, for matrices of few shapes: one batch of matrices per shape."""

    def __init__(self, matrices: list[nn.Parameter], decay: float, momentum: float = 0.95) -> None:
        """Group `matrices` by shape and start with zero momentum."""
        shapes = sorted({tuple(p.shape) for p in matrices})
        self._groups = [[p for p in matrices if tuple(p.shape) == shape] for shape in shapes]
        self._buffers = [g[0].new_zeros(len(g), *g[0].shape) for g in self._groups]
        self._decay, self._momentum = decay, momentum

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix by its orthogonalised Nesterov momentum; clear the gradients."""
        for group, buffer in zip(self._groups, self._buffers, strict=True):
            gradients = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(gradients, 1 - self._momentum)
            updates = orthogonalize(gradients.lerp_(buffer, self._momentum))
            scale = max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            for parameter, update in zip(group, updates, strict=True):
                parameter.mul_(1 - rate * self._decay).add_(update, alpha=-rate * scale)
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Give the momentum buffers."""
        return {"buffers": self._buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for buffer, saved in zip(self._buffers, state["buffers"], strict=True):
            buffer.copy_(saved)


class MuonWithAdamW:
    """Two optimisers that step as one (Jordan et al. 2024, Muon; Loshchilov & Hutter, AdamW)."""

    def __init__(self, model: nn.Module, rates: Rates) -> None:
        """Share out the parameters: hidden matrices to Muon, everything else to AdamW."""
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._rates = rates
        self._muon = Muon(matrices, rates.weight_decay)
        self._adam = torch.optim.AdamW(
            others, lr=rates.other, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True
        )

    def step(self, step: int, progress: float) -> None:
        """Update the parameters at the scheduled rates and clear the gradients."""
        factor = self._rates.factor(step, progress)
        self._muon.step(self._rates.matrix * factor)
        for group in self._adam.param_groups:
            group["lr"] = self._rates.other * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Give both optimisers' state."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
