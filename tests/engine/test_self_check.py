"""The self-check passes what is right and refuses, by name, what would give wrong tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from engine.errors import ModelNotSupportedError
from engine.model import attention
from engine.model.loader import from_model
from engine.model.self_check import check_model
from tests.parity.families import FAMILIES, build_family


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_every_family(family: str) -> None:
    check_model(from_model(build_family(family)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_passes_half_precision(family: str, dtype: torch.dtype) -> None:
    check_model(from_model(build_family(family).to(dtype)))


def test_leaves_the_model_on_paged_attention() -> None:
    loaded = from_model(build_family("llama"))
    check_model(loaded)
    assert loaded.model.config._attn_implementation == attention.PAGED_ATTENTION


def _hook_output(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the second layer's MLP pass through `change`, outside of attention's sight."""

    def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return change(output)

    model.model.layers[1].mlp.register_forward_hook(hook)


def test_refuses_layers_that_mix_neighbouring_rows() -> None:
    model = build_family("llama")
    _hook_output(model, lambda rows: rows + 0.5 * rows.roll(1, dims=1))
    with pytest.raises(ModelNotSupportedError, match=r"LlamaForCausalLM.*two prompts packed"):
        check_model(from_model(model))


def test_refuses_layers_that_count_positions_from_the_rows_start() -> None:
    model = build_family("llama")
    _hook_output(
        model, lambda rows: rows * (1.0 + torch.arange(rows.shape[1]).remainder(7)[None, :, None])
    )
    with pytest.raises(ModelNotSupportedError, match=r"LlamaForCausalLM.*differ by"):
        check_model(from_model(model))


def test_refuses_what_only_its_own_attention_does() -> None:
    model = build_family("llama")
    sharper = model.model.layers[0].self_attn

    class Sharper(type(sharper)):  # type: ignore[misc]  # the family's own class
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.scaling = 3.0 if self.config._attn_implementation == "eager" else 0.3
            return super().forward(*args, **kwargs)

    sharper.__class__ = Sharper
    with pytest.raises(ModelNotSupportedError, match="paged attention and its own attention"):
        check_model(from_model(model))


def test_refuses_attention_that_forgets_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget_window(module: torch.nn.Module, *args: Any, **keywords: Any) -> Any:
        return attention.attention_forward(module, *args, **{**keywords, "sliding_window": None})

    loaded = from_model(build_family("mistral"))
    mapping = attention.AttentionInterface._global_mapping
    monkeypatch.setitem(mapping, attention.PAGED_ATTENTION, forget_window)
    with pytest.raises(ModelNotSupportedError, match="paged attention and its own attention"):
        check_model(loaded)


def test_refuses_logits_that_are_not_numbers() -> None:
    model = build_family("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ModelNotSupportedError, match="nan"):
        check_model(from_model(model))


def test_prompts_are_cut_to_a_short_context() -> None:
    model = build_family("llama")
    model.config.max_position_embeddings = 8
    assert isinstance(model, LlamaForCausalLM)
    check_model(from_model(model))
