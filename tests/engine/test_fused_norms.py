"""Norms and gates are computed by our kernels where these give the same, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from engine import model_pair
from engine.config import ModelConfig
from engine.model import compiled
from engine.model.fused_gates import FusedGate, fuse_gates
from engine.model.fused_norms import FusedNorm, fuse_norms
from engine.model.loader import from_model
from tests.kernels.devices import DEVICES
from tests.parity.families import build_family
from tests.tiny_models import generate, make_core, random_prompts, seeded, tiny_llama

# Norms per layer, of layers and at the end; gates, of which other activations are none.
NUM_FUSED = {
    "llama": (2 * 3 + 1, 3),
    "qwen3": (4 * 3 + 1, 3),
    "gemma2": (4 * 3 + 1, 0),
    "gemma3": (6 * 3 + 1, 0),
    "olmo2": (4 * 3 + 1, 3),
    "phi3": (2 * 3 + 1, 0),
    "gpt2": (0, 0),
}


@pytest.mark.parametrize("family", NUM_FUSED)
def test_words_stay_the_same(family: str) -> None:
    loaded = from_model(build_family(family))
    assert (fuse_norms(loaded.model), fuse_gates(loaded.model)) == NUM_FUSED[family]
    prompts = random_prompts(4)
    expected = generate(make_core(build_family(family)), prompts, seeded(10))
    assert generate(make_core(loaded), prompts, seeded(10)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("device", DEVICES)
def test_every_dtype_is_recognised(dtype: torch.dtype, device: str) -> None:
    model = tiny_llama().to(device, dtype)
    assert fuse_norms(model) == 5
    assert fuse_gates(model) == 2


class ShiftedRMSNorm(LlamaRMSNorm):
    """Adds a little."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + 1e-3


class InnerRMSNorm(LlamaRMSNorm):
    """Has its epsilon elsewhere."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        length = hidden_states.pow(2).mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (length + self.variance_epsilon)


class GatedRMSNorm(LlamaRMSNorm):
    """Takes a gate as well."""

    def forward(
        self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        normed = super().forward(hidden_states)
        return normed if gate is None else normed * gate


class FailingRMSNorm(LlamaRMSNorm):
    """Wants rows of four dimensions."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("four dimensions, please")


def plain_norm() -> LlamaRMSNorm:
    """Make what all others derive from."""
    return LlamaRMSNorm(16)


@pytest.mark.parametrize("make", [ShiftedRMSNorm, InnerRMSNorm, GatedRMSNorm, FailingRMSNorm])
def test_norms_that_compute_something_else_stay(make: type[LlamaRMSNorm]) -> None:
    both = nn.ModuleList([make(16), plain_norm()]).requires_grad_(False)
    assert fuse_norms(both) == 1
    assert not isinstance(both[0].forward, FusedNorm)
    assert isinstance(both[1].forward, FusedNorm)


def test_a_norm_that_was_replaced_stays_as_it_is() -> None:
    norm = plain_norm()
    assert [fuse_norms(norm), fuse_norms(norm)] == [1, 0]


def test_rows_of_another_dtype_go_through_the_norms_own_forward() -> None:
    rows = torch.randn(2, 16, dtype=torch.bfloat16)
    norm = plain_norm()
    expected = norm(rows)
    fuse_norms(norm)
    assert norm(rows).dtype is expected.dtype is torch.float32
    assert torch.equal(norm(rows), expected)


class ScaledMLP(LlamaMLP):
    """Scales what goes down."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = 1.01 * super().forward(x)
        return scaled


class PairedMLP(LlamaMLP):
    """Gives two results."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(x), x


@pytest.mark.parametrize("make", [ScaledMLP, PairedMLP])
def test_gates_that_compute_something_else_stay(make: Callable[..., nn.Module]) -> None:
    config = tiny_llama().config
    both = nn.ModuleList([make(config), LlamaMLP(config)]).requires_grad_(False)
    assert fuse_gates(both) == 1
    assert not isinstance(both[0].forward, FusedGate)
    assert isinstance(both[1].forward, FusedGate)


def num_replaced(model: nn.Module) -> int:
    """Count what was replaced in a model."""
    return sum(isinstance(m.forward, FusedNorm | FusedGate) for m in model.modules())


def test_layers_that_are_not_compiled_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(compiled, "compile_layers", seen.append)
    as_if_on_gpu = replace(from_model(tiny_llama()), device=torch.device("cuda"))
    model_pair.compile_if_asked(ModelConfig(), as_if_on_gpu)
    assert seen == [as_if_on_gpu]
    assert num_replaced(as_if_on_gpu.model) == 0
    model_pair.compile_if_asked(ModelConfig(compile="off"), as_if_on_gpu)
    assert num_replaced(as_if_on_gpu.model) == 5 + 2


@pytest.mark.parametrize("has_compiler", [False, True])
def test_a_cpu_gets_norms_where_it_has_the_function(
    has_compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pair, "serves", lambda _: has_compiler)
    loaded = from_model(tiny_llama())
    model_pair.compile_if_asked(ModelConfig(), loaded)
    assert num_replaced(loaded.model) == (5 if has_compiler else 0)
