"""Compiled layers say the same words, and all layers of a kind are compiled once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._guards import CompileContext
from transformers import LlamaConfig, LlamaForCausalLM

from engine import model_pair
from engine.config import EngineConfig, ModelConfig
from engine.config_files import apply_options
from engine.errors import ConfigError, ModelLoadError, ModelNotSupportedError
from engine.model.compiled import compile_layers
from engine.model.experts import multiplies_without_host
from engine.model.layer_subset import subset_of
from engine.model.loader import LoadedModel, from_model
from tests.parity.families import FAMILIES, build_family
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

PROMPTS = random_prompts(5)
NUM_TOKENS = 12
# Graphs for one token and for any number, times the kinds of layers: windows alternate, or (GPT-2)
# scale differs from layer to layer.
NUM_KINDS = {"qwen2": 2, "gemma2": 2, "gemma3": 2, "gpt_oss": 2, "gpt2": 3}


class CountingBackend:
    """Runs graphs as they are traced, and counts them; one that is begun anew counts once."""

    def __init__(self) -> None:
        self._compilations: set[object] = set()

    @property
    def num_graphs(self) -> int:
        return len(self._compilations)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self._compilations.add(CompileContext.current_compile_id())
        compiled: Callable[..., Any] = aot_eager(graph, inputs)
        return compiled


def compiled(model: Any, backend: CountingBackend | None = None) -> LoadedModel:
    loaded = from_model(model)
    compile_layers(loaded, backend or CountingBackend())
    return loaded


def words(model: Any, draft: Any = None, **options: Any) -> list[list[int]]:
    return generate(make_core(model, draft, **options), PROMPTS, greedy(NUM_TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_and_compiles_each_kind_of_layer_once(family: str) -> None:
    backend = CountingBackend()
    loaded = compiled(build_family(family), backend)
    num_graphs = 2 * NUM_KINDS.get(family, 1)
    assert backend.num_graphs == num_graphs
    assert words(loaded) == words(build_family(family))
    assert generate(make_core(loaded), PROMPTS[:1], greedy(3)) == generate(
        make_core(build_family(family)), PROMPTS[:1], greedy(3)
    )
    assert backend.num_graphs == num_graphs, "serving compiles nothing more"


def test_ten_layers_cost_what_one_costs() -> None:
    backend = CountingBackend()
    loaded = compiled(tiny_llama(layers=10), backend)
    assert words(loaded) == words(tiny_llama(layers=10))
    assert backend.num_graphs == 2


def test_words_are_the_same_under_a_compiled_draft() -> None:
    backends = CountingBackend(), CountingBackend()
    target, draft = compiled(tiny_llama(), backends[0]), compiled(tiny_llama(1), backends[1])
    core = make_core(target, draft, speculation=4)
    params = seeded(NUM_TOKENS)
    assert generate(core, PROMPTS, params) == generate(make_core(tiny_llama()), PROMPTS, params)
    assert [backend.num_graphs for backend in backends] == [2, 2]


def test_a_subset_of_layers_runs_the_same_graphs() -> None:
    backend = CountingBackend()
    subset = subset_of(compiled(tiny_llama(layers=4), backend), [0, 2, 3])
    assert words(subset) == words(subset_of(from_model(tiny_llama(layers=4)), [0, 2, 3]))
    assert backend.num_graphs == 2, "neither a probe nor a subset compiles anything"


class AsksTheHost(torch.nn.SiLU):
    """An activation that no graph can hold: the host looks at values."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows) * (1.0 if float(rows.sum()) < 1e9 else 0.5)


def test_layers_that_read_values_on_the_host_are_refused_and_left_as_they_were() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.act_fn = AsksTheHost()
    with pytest.raises(ModelNotSupportedError, match=r"LlamaForCausalLM.*cannot be compiled"):
        compiled(model)
    assert words(model) == words(tiny_llama())


def test_a_graph_that_cannot_be_made_anew_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    loaded = compiled(tiny_llama())
    loaded.model.get_submodule("model.layers.1.mlp").act_fn = AsksTheHost()
    with caplog.at_level(logging.WARNING, "engine.model.compiled"):
        assert words(loaded) == words(tiny_llama())
    own = [record for record in caplog.records if record.name == "engine.model.compiled"]
    assert [record.getMessage().split()[0] for record in own] == ["not_compiled"]


def test_graphs_that_compute_something_else_are_refused() -> None:
    def wrong(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return lambda *args: [1.5 * output for output in graph.forward(*args)]

    with pytest.raises(ModelNotSupportedError, match="compiled layers and eager ones differ"):
        compile_layers(from_model(tiny_llama()), wrong)


def test_layers_are_compiled_once_only() -> None:
    loaded = compiled(tiny_llama())
    with pytest.raises(ModelNotSupportedError, match="replaced its layers' forward"):
        compile_layers(loaded)


def test_a_keyword_that_only_a_traced_call_brings_is_refused_by_name() -> None:
    model = tiny_llama()
    attention = model.model.layers[0].self_attn

    class Biased(type(attention)):  # type: ignore[misc]  # the family's own class
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                kwargs["position_bias"] = 1.0
            return super().forward(*args, **kwargs)

    attention.__class__ = Biased
    with pytest.raises(ModelNotSupportedError, match=r"position_bias=1\.0"):
        compiled(model)


@pytest.mark.parametrize(
    ("mode", "device", "is_compiled"),
    [("auto", "cpu", False), ("auto", "cuda", True), ("on", "cpu", True), ("off", "cuda", False)],
)
def test_the_setting_says_which_models_are_compiled(
    mode: str, device: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LoadedModel] = []
    monkeypatch.setattr("engine.model.compiled.compile_layers", seen.append)
    loaded = replace(from_model(tiny_llama()), device=torch.device(device))
    monkeypatch.setattr(model_pair, "load_model", lambda *_, **__: loaded)
    monkeypatch.setattr(model_pair, "check_model", lambda _: None)
    options = {"model": "in memory", "compile": mode}
    model_pair.load_target(apply_options(EngineConfig(), options))
    assert seen == ([loaded] if is_compiled else [])


def test_what_was_asked_for_is_compiled_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: LoadedModel) -> None:
        raise ModelNotSupportedError("compile: a reason")

    tiny_llama().save_pretrained(tmp_path)
    monkeypatch.setattr("engine.model.compiled.compile_layers", refuse)
    options = {"model": str(tmp_path), "device": "cpu"}
    with pytest.raises(ModelLoadError, match="a reason"):
        model_pair.load_target(apply_options(EngineConfig(), options | {"compile": "on"}))
    loaded = model_pair.load_target(apply_options(EngineConfig(), options)).target
    model_pair.compile_if_asked(ModelConfig(), replace(loaded, device=torch.device("cuda")))
    assert "a reason" in caplog.text


def test_another_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile: 'max'"):
        ModelConfig(compile="max")


def test_only_bfloat16_on_newer_devices_multiplies_experts_without_the_host() -> None:
    assert multiplies_without_host(torch.bfloat16, (9, 0))
    assert not multiplies_without_host(torch.bfloat16, (8, 0))
    assert not multiplies_without_host(torch.float16, (9, 0))


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_says_the_same() -> None:
    loaded = from_model(tiny_llama())
    compile_layers(loaded)
    assert words(loaded) == words(tiny_llama())


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen3_moe"])
def test_inductor_says_the_same_on_gpu(family: str) -> None:
    loaded = from_model(build_family(family).cuda())
    compile_layers(loaded)
    assert words(loaded) == words(build_family(family).cuda())


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_inductor_passes_its_trial_in_bfloat16_at_real_widths() -> None:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=4096,
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    compile_layers(from_model(model))
