"""Fused projections give what separate ones gave, in any order, and leave alone what is special."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from engine.model import fused_projections
from engine.model.loader import from_model
from engine.model.self_check import check_model
from tests.parity.families import FAMILIES, build_family

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IDS = torch.tensor([[5, 9, 2, 77, 31]], device=DEVICE)
PLAIN = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2"}
GROUPS = dict.fromkeys(PLAIN, 6) | {"gpt_oss": 3, "mixtral": 3, "qwen3_moe": 3}


class Layer(nn.Module):
    """Three projections of one input, called as the test likes."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 6, bias)
        self.k_proj = nn.Linear(8, 4, bias)
        self.v_proj = nn.Linear(8, 4, bias)
        self.requires_grad_(False)

    def all_of(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self.q_proj(inputs), self.k_proj(inputs), self.v_proj(inputs)]


class Adapted(nn.Linear):
    """A projection that is more than its weight."""


def family(name: str) -> PreTrainedModel:
    return build_family(name).to(DEVICE)


@torch.inference_mode()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


def layer_pair(bias: bool = False) -> tuple[Layer, Layer]:
    """Give a fused layer and its separate twin."""
    torch.manual_seed(1)
    separate = Layer(bias)
    fused = deepcopy(separate)
    assert fused_projections.fuse(fused) == 1
    return fused, separate


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_logits(name: str) -> None:
    model = family(name)
    before = logits_of(model)
    assert fused_projections.fuse(model) == GROUPS.get(name, 0)
    torch.testing.assert_close(logits_of(model), before, atol=1e-4, rtol=1e-4)
    assert fused_projections.separate_unshared(model) == 0


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_one_product_computes_a_group(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family(name)
    fused_projections.fuse(model)
    sizes = []
    linear = torch.nn.functional.linear

    def counted(given: torch.Tensor, weight: torch.Tensor, bias: object = None) -> torch.Tensor:
        sizes.append(weight.shape[0])
        return linear(given, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    logits_of(model)
    # qkv, output, gate and up, down of three layers; then the logits.
    assert len(sizes) == 3 * 4 + 1


@pytest.mark.parametrize("bias", [False, True])
def test_any_order_and_any_input_is_right(bias: bool) -> None:
    fused, separate = layer_pair(bias)
    first, second = torch.randn(2, 3, 8)
    for one, other in zip(fused.all_of(first), separate.all_of(first), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(fused.k_proj(second), separate.k_proj(second))
    torch.testing.assert_close(fused.q_proj(first), separate.q_proj(first))
    torch.testing.assert_close(fused.v_proj(second), separate.v_proj(second))
    torch.testing.assert_close(fused.v_proj(first), separate.v_proj(first))
    torch.testing.assert_close(fused.v_proj(first), separate.v_proj(first))
    torch.testing.assert_close(fused.k_proj(first.clone()), separate.k_proj(first))


def test_nothing_of_a_pass_is_kept_after_it() -> None:
    fused, _ = layer_pair()
    fused.all_of(torch.randn(2, 8))
    group = fused.q_proj.group
    assert isinstance(group, fused_projections._Group)
    assert group.input is None
    assert group.parts == {}


def test_weights_are_views_of_one_tensor_under_their_old_names() -> None:
    fused, separate = layer_pair(bias=True)
    own, old = fused.state_dict(), separate.state_dict()
    assert list(own) == list(old)
    assert all(torch.equal(own[name], old[name]) for name in old)
    storages = {fused.get_parameter(f"{n}_proj.weight").untyped_storage().data_ptr() for n in "qkv"}
    assert len(storages) == 1


def test_loading_a_state_reaches_the_fused_product() -> None:
    fused, _ = layer_pair()
    other = Layer()
    fused.load_state_dict(other.state_dict())
    given = torch.randn(2, 8)
    for one, expected in zip(fused.all_of(given), other.all_of(given), strict=True):
        torch.testing.assert_close(one, expected)


def test_casting_takes_a_group_apart() -> None:
    fused, separate = layer_pair(bias=True)
    fused.double()
    separate.double()
    assert type(fused.q_proj) is type(fused.k_proj) is nn.Linear
    given = torch.randn(2, 8, dtype=torch.float64)
    for one, other in zip(fused.all_of(given), separate.all_of(given), strict=True):
        torch.testing.assert_close(one, other)


def test_a_group_whose_members_read_different_inputs_is_taken_apart() -> None:
    fused, separate = layer_pair()
    given = torch.randn(2, 8)
    fused.q_proj(given)
    fused.k_proj(given * 2)
    assert fused_projections.separate_unshared(fused) == 1
    assert all(type(module) is nn.Linear for module in fused.children())
    for one, other in zip(fused.all_of(given), separate.all_of(given), strict=True):
        torch.testing.assert_close(one, other)


def altered(what: str) -> Layer:
    layer = Layer()
    if what == "a subclass":
        layer.k_proj = Adapted(8, 4, bias=False)
    elif what == "another dtype":
        layer.k_proj.double()
    elif what == "another input size":
        layer.k_proj = nn.Linear(7, 4, bias=False)
    elif what == "a bias for one":
        layer.k_proj = nn.Linear(8, 4)
    elif what == "a shared weight":
        layer.k_proj.weight = layer.v_proj.weight
    elif what == "a forward of its own":
        layer.k_proj.forward = layer.q_proj.forward  # type: ignore[method-assign]  # as hooks do
    else:
        del layer.v_proj
    return layer


@pytest.mark.parametrize(
    "what",
    [
        "a subclass", "another dtype", "another input size", "a bias for one", "a shared weight",
        "a forward of its own", "a missing member",
    ],
)  # fmt: skip
def test_leaves_alone(what: str) -> None:
    layer = altered(what)
    kinds = [type(module) for module in layer.children()]
    assert fused_projections.fuse(layer) == 0
    assert [type(module) for module in layer.children()] == kinds


def test_a_second_time_changes_nothing() -> None:
    fused, _ = layer_pair()
    assert fused_projections.fuse(fused) == 0


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_a_layer_compiles_without_graph_breaks(name: str) -> None:
    model = family(name)
    fused_projections.fuse(model)
    expected = logits_of(model)
    torch._dynamo.reset()
    layers = model.get_decoder().layers
    for index in range(len(layers)):
        layers[index] = torch.compile(layers[index], backend="eager", fullgraph=True)
    torch.testing.assert_close(logits_of(model), expected)


def test_loading_fuses_unless_told_not_to() -> None:
    fused = from_model(family("llama"))
    separate = from_model(family("llama"), fuse_projections=False)
    assert not isinstance(
        separate.model.model.layers[0].self_attn.k_proj, fused_projections._Member
    )
    assert isinstance(fused.model.model.layers[0].self_attn.k_proj, fused_projections._Member)
    assert fused.weight_bytes == separate.weight_bytes
    check_model(fused)


@pytest.mark.gpu
def test_a_captured_graph_computes_with_new_inputs() -> None:
    torch.manual_seed(0)
    layer = Layer().to("cuda", torch.bfloat16)
    twin = deepcopy(layer)
    fused_projections.fuse(layer)
    given = torch.randn(4, 8, device="cuda", dtype=torch.bfloat16)
    layer.all_of(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = layer.all_of(given)
    given.normal_()
    graph.replay()
    for one, other in zip(outputs, twin.all_of(given), strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=2e-2)
