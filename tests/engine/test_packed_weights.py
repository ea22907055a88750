"""Reordered weights give what plain ones give, and are left out where they cannot serve."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.model import packed_weights
from engine.model.linear import FewRowsLinear, use_few_rows_linear
from engine.model.loader import from_model
from engine.model.packed_weights import can_pack, pack
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

pytestmark = pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1)), reason="this machine's torch has no kernels for them"
)

TOLERANCES = [
    pytest.param((torch.float32, 1e-5), id="float32"),
    pytest.param((torch.bfloat16, 2e-2), id="bfloat16"),
]


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(8, 16), (33, 7), (1, 64), (300, 20)])
def test_multiplies_as_the_plain_weight_does(
    shape: tuple[int, int], tolerance: tuple[torch.dtype, float]
) -> None:
    dtype, bound = tolerance
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    if not can_pack(weight):
        pytest.skip(f"no kernels for {dtype}")
    packed = pack(weight)
    for rows in ((1,), (5,), (1, 1), (1, 40), (2, 3)):
        x = torch.randn(*rows, shape[1]).to(dtype)
        for added in (None, bias):
            expected = F.linear(
                x.double(), weight.double(), None if added is None else bias.double()
            )
            ours = packed.multiply(x, added)
            assert ours.shape == expected.shape
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), expected, atol=10 * bound, rtol=bound)


def test_every_linear_layer_of_a_model_on_a_cpu_is_packed() -> None:
    loaded = from_model(tiny_llama())
    linears = [m for m in loaded.model.modules() if isinstance(m, nn.Linear)]
    assert all(type(module) is not nn.Linear for module in linears)
    assert isinstance(loaded.model.lm_head, FewRowsLinear)
    assert loaded.model.lm_head.packed is not None


def test_words_are_those_of_plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(5)
    settings = [greedy(20), seeded(20), greedy(10), seeded(15, top_p=0.9), greedy(20)]
    ours = generate(make_core(tiny_llama(), tiny_llama(1)), prompts, settings)
    monkeypatch.setattr("engine.model.loader.has_memory_for", lambda _: False)
    plain = from_model(tiny_llama())
    assert type(plain.model.lm_head) is nn.Linear
    assert generate(make_core(plain), prompts, settings) == ours


def test_no_copies_are_made_that_leave_too_little_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed_weights, "_MEMORY_SHARE", 0.0)
    with caplog.at_level(logging.WARNING):
        loaded = from_model(tiny_llama())
    assert type(loaded.model.lm_head) is nn.Linear
    assert "packed_weights=no" in caplog.text


def test_a_layer_that_is_cast_goes_back_to_its_plain_weight() -> None:
    layer = nn.Sequential(nn.Linear(8, 4)).requires_grad_(False)
    assert use_few_rows_linear(layer, packs=True) == 1
    x = torch.randn(3, 8)
    expected = layer(x)
    layer.to(torch.float64)
    torch.testing.assert_close(layer(x.double()).float(), expected)


def test_a_copy_follows_its_plain_weights() -> None:
    model = from_model(tiny_llama()).model
    copied = deepcopy(model)
    with torch.no_grad():
        copied.lm_head.weight.mul_(2.0)
    hidden = torch.randn(1, 3, 32)
    torch.testing.assert_close(copied.lm_head(hidden), 2.0 * model.lm_head(hidden))


def test_other_types_are_not_packed() -> None:
    assert not can_pack(torch.zeros(4, 4, dtype=torch.float64))
    assert not can_pack(torch.zeros(4, 4, device="meta"))
