"""Settings name who computes attention, or the fastest does; who cannot is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.errors import ConfigError
from engine.model.loader import LoadedModel, from_model
from engine.runner.attention_setup import (
    attend_by,
    choose_attention,
    installed_backends,
    makers_for,
)
from kernels.attention_backends import AttentionBackend, AttentionKind, PassClass
from kernels.paged_attention import paged_attention
from tests.kernels.test_attention_choice import FAST_TWIN, FakeTimer, Twin
from tests.parity.families import build_family
from tests.tiny_models import generate, greedy, make_core, tiny_llama


def settings(backend: str = "auto") -> EngineConfig:
    """Make settings for few requests."""
    options = {"attention_backend": backend, "max_num_seqs": 2, "max_num_batched_tokens": 80}
    return apply_options(EngineConfig(), options)


def choose(loaded: LoadedModel, backend: str = "auto", *others: AttentionBackend) -> dict[str, str]:
    """Choose for a model, the twin being faster."""
    return attend_by(settings(backend), loaded, others, 100, FakeTimer(FAST_TWIN))


def test_the_fastest_attends_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    loaded = from_model(tiny_llama())
    with caplog.at_level(logging.INFO, logger="engine.runner.attention_setup"):
        chosen = choose(loaded, "auto", Twin())
    assert chosen == {"decode 4x2x8": "twin", "verify 4x2x8": "twin", "prefill 4x2x8": "twin"}
    assert loaded.attend is not paged_attention
    assert [record.getMessage() for record in caplog.records] == [
        f"attention model={loaded.name} decode:4x2x8=twin verify:4x2x8=twin prefill:4x2x8=twin"
    ]


def test_our_kernels_are_called_directly_where_they_are_alone() -> None:
    loaded = from_model(tiny_llama())
    assert set(choose(loaded, "auto", Twin()).values()) == {"twin"}
    assert set(choose(loaded).values()) == {"triton"}
    assert loaded.attend is paged_attention


def test_layers_of_each_kind_have_a_choice_of_their_own() -> None:
    capped = from_model(build_family("gemma2"))
    chosen = choose(capped, "auto", Twin())
    assert len(chosen) == 2 * len(PassClass)  # windows alternate
    assert set(chosen.values()) == {"triton"}
    windowed = from_model(build_family("mistral"))
    assert set(choose(windowed, "auto", Twin())) == {f"{p.value} 4x2x8/window12" for p in PassClass}


def test_what_was_chosen_is_what_a_model_attends_by() -> None:
    calls: list[AttentionKind] = []

    def attend(query: torch.Tensor, *arguments: object, **extras: object) -> torch.Tensor:
        calls.append(AttentionKind(query.shape[1], 2, 8, 8))
        attended: torch.Tensor = paged_attention(query, *arguments, **extras)  # type: ignore[arg-type]
        return attended

    loaded = replace(from_model(tiny_llama()), attend=attend)
    core = make_core(loaded)
    assert generate(core, [[5, 6, 7]], greedy(3)) == generate(
        make_core(tiny_llama()), [[5, 6, 7]], greedy(3)
    )
    assert len(calls) == 2 * core.stats().num_steps


def test_a_named_backend_that_does_not_serve_a_model_is_refused() -> None:
    twin = Twin(name="torch")
    with pytest.raises(ConfigError, match=r"attention_backend: torch cannot serve .*gemma2.*"):
        choose(replace(from_model(build_family("gemma2")), name="gemma2"), "torch", twin)
    twin.error = RuntimeError("pages of 256 only")
    with pytest.raises(ConfigError, match="torch cannot serve .* pages of 256 only; give auto"):
        choose(from_model(tiny_llama()), "torch", twin)


def absent() -> AttentionBackend:
    """Make a backend that is not there."""
    raise ImportError("no such package")


def test_only_what_is_there_and_wanted_is_tried() -> None:
    twin = Twin()
    makers: dict[str, Callable[[], AttentionBackend]] = {"twin": lambda: twin, "other": absent}
    assert installed_backends("auto", makers) == [twin]
    assert installed_backends("triton", makers) == []
    assert installed_backends("twin", makers) == [twin]
    with pytest.raises(ConfigError, match="attention_backend: other cannot be used: no such pack"):
        installed_backends("other", makers)


def test_flashinfer_is_for_steps_that_wait_for_the_host() -> None:
    device = torch.device("cuda")
    makers = makers_for(settings("flashinfer"), device)
    with pytest.raises(ConfigError, match="flashinfer cannot be used: .* give --decode-ahead off"):
        installed_backends("flashinfer", makers)


@pytest.mark.parametrize("backend", ["triton", "torch", "flashinfer"])
def test_without_a_gpu_only_auto_is_possible(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"attention_backend: {backend} needs a CUDA device"):
        choose_attention(settings(backend), [from_model(tiny_llama())], 100)


def test_without_a_gpu_nothing_is_chosen() -> None:
    core = make_core(tiny_llama())
    assert core.info.attention_backends == core.attention_backends == {}


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match="attention_backend: 'cudnn' is not one of auto, triton"):
        settings("cudnn")


@pytest.mark.gpu
def test_on_a_gpu_it_is_told_who_attends() -> None:
    core = make_core(tiny_llama().cuda(), tiny_llama(1).cuda())
    places = {place.split()[0] for place in core.attention_backends}
    assert places == {"target", "draft"}
    assert set(core.attention_backends.values()) <= {"triton", "torch", "flashinfer"}
