"""A loaded model with fewer layers: the same weights, some layers passed by.

The modules from the top down to the list of layers are copied, shallowly; each layer that is left
out is a copy of itself that hands its input on. Layers keep their places and indices, so their
kinds of attention, their rotary embeddings and their keys and values stay their own, and the model
that was given is not touched. Nothing is known of any architecture: a probe says whether it worked.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.errors import ModelNotSupportedError
from engine.model.attention import (
    PAGED_ATTENTION,
    PROBE_ATTENTION,
    ProbeContext,
    use_attention_context,
)
from engine.model.decoder_layers import paths_of_layers
from engine.model.loader import LoadedModel, set_attention


def subset_of(loaded: LoadedModel, kept: Iterable[int]) -> LoadedModel:
    """Make a model of some of another's layers, for storages of the other's shape.

    Args:
        loaded: the whole model; its weights are shared.
        kept: indices of the layers to run.

    Raises:
        ModelNotSupportedError: its layers cannot be passed by; names the architecture.
    """
    kept = sorted(set(kept))
    path = _path_to_layers(loaded)
    layers = loaded.model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList), "the path leads to a list of layers"
    chosen = [layer if index in kept else _passing_by(layer) for index, layer in enumerate(layers)]
    model = _with_submodule(loaded.model, path.split("."), nn.ModuleList(chosen))
    assert isinstance(model, PreTrainedModel), "a copy is of its original's class"
    subset = replace(
        loaded,
        model=model,
        name=f"{loaded.name} layers {_listed(kept)}",
        native=loaded.native.subset(kept) if loaded.native is not None else None,
    )
    _check(subset, loaded, kept)
    return subset


def _path_to_layers(loaded: LoadedModel) -> str:
    paths = paths_of_layers(loaded)
    if len(paths) != 1:
        raise ModelNotSupportedError(
            f"layer-skip: {loaded.name} ({type(loaded.model).__name__}) has {len(paths)} lists of "
            "layers with one attention each, not 1; name another draft."
        )
    return paths[0]


def _passing_by(layer: nn.Module) -> nn.Module:
    """Copy a layer, sharing all that it has, so that it hands on what it gets."""
    copied = copy(layer)
    copied.forward = _hand_on
    return copied


def _hand_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states


def _with_submodule(module: nn.Module, path: list[str], new: nn.Module) -> nn.Module:
    """Copy the modules along a path and put another one at its end."""
    if not path:
        return new
    copied = copy(module)
    inner = dict(module._modules)
    child = inner[path[0]]
    assert child is not None, f"there is a module at {path[0]}"
    inner[path[0]] = _with_submodule(child, path[1:], new)
    copied._modules = inner
    return copied


def _check(subset: LoadedModel, whole: LoadedModel, kept: list[int]) -> None:
    """Watch a pass of the subset: it must call the kept layers, each as the whole model does."""
    calls = _watch(subset)
    expected = [whole.sliding_windows[index] for index in kept]
    if [call.layer_idx for call in calls] != kept or [
        call.sliding_window for call in calls
    ] != expected:
        raise ModelNotSupportedError(
            f"layer-skip: of {whole.name} ({type(whole.model).__name__}) layers {_listed(kept)} "
            f"were asked for, and {_listed(call.layer_idx for call in calls)} ran; name another "
            "draft."
        )


def _watch(subset: LoadedModel) -> list[Any]:
    probe = ProbeContext()
    token_ids = torch.zeros(1, 3, dtype=torch.int64, device=subset.device)
    positions = torch.arange(3, device=subset.device).unsqueeze(0)
    set_attention(subset.model, PROBE_ATTENTION, subset.name)
    try:
        with torch.inference_mode(), use_attention_context(probe):
            output = subset.model(input_ids=token_ids, position_ids=positions, use_cache=False)
            if output.logits.shape != (1, 3, subset.vocab_size):
                raise ValueError(f"its logits have the shape {list(output.logits.shape)}")
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise ModelNotSupportedError(
            f"layer-skip: {subset.name} ({type(subset.model).__name__}) does not run: {error}"
        ) from error
    finally:
        set_attention(subset.model, PAGED_ATTENTION, subset.name)
    return probe.calls


def _listed(indices: Iterable[int]) -> str:
    return ",".join(map(str, indices)) or "none"
