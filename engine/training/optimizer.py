"""The optimisers of a training run and their shared learning-rate schedule.

Knows Muon for hidden matrices, AdamW for the rest, and a trapezoid over progress in [0, 1].
Refuses to know what progress is made of (steps or minutes) and what is trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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


class MuonWithAdamW:
    """Two optimisers that step as one (Jordan et al. 2024, Muon; Loshchilov & Hutter, AdamW)."""

    def __init__(self, model: nn.Module, rates: Rates) -> None:
        """Share out the parameters: hidden matrices to Muon, everything else to AdamW."""
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._rates = rates
        self._muon = torch.optim.Muon(
            matrices, lr=rates.matrix, momentum=0.95, weight_decay=rates.weight_decay
        )
        self._adam = torch.optim.AdamW(
            others, lr=rates.other, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True
        )

    def step(self, step: int, progress: float) -> None:
        """Update the parameters at the scheduled rates and clear the gradients."""
        factor = self._rates.factor(step, progress)
        peaks = ((self._muon, self._rates.matrix), (self._adam, self._rates.other))
        for optimizer, peak in peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Give both optimisers' state."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
