"""Finds the list of decoder layers in a model of any architecture."""

from __future__ import annotations

from torch import nn

from engine.model.loader import LoadedModel


def paths_of_layers(loaded: LoadedModel) -> list[str]:
    """Find the lists whose members hold one attention layer each, in order; one, as a rule."""
    return [
        path
        for path, module in loaded.model.named_modules()
        if isinstance(module, nn.ModuleList)
        and [_layer_indices(layer) for layer in module] == [{i} for i in range(len(loaded.layers))]
    ]


def _layer_indices(layer: nn.Module) -> set[int]:
    found = (getattr(module, "layer_idx", None) for module in layer.modules())
    return {index for index in found if isinstance(index, int)}
