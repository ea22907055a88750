"""Models of published shapes with random weights: what they cost is real, what they say is not.

A shape is a YAML file in `model_configs/shapes/`: the fields of a transformers configuration, with
its `model_type`. It knows no weights and no tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from engine.config import INT8, NONE, SHAPE_PREFIX
from engine.config_files import MODEL_CONFIGS, read_yaml, suggest
from engine.errors import ConfigError, OutOfMemoryError
from engine.model.int8_weights import check_int8
from engine.model.loader import LoadedModel, dtype_to_load, from_model
from engine.model.random_weights import random_model

SHAPES = MODEL_CONFIGS / "shapes"
# Attention layers read it of every configuration, also of those that do not declare it.
_ALWAYS_READ = frozenset({"head_dim", "dtype"})


def shape_names() -> list[str]:
    """Give the names of the shapes, sorted."""
    return sorted(path.stem for path in SHAPES.glob("*.yaml"))


def shape_config(
    name_or_path: str | Path, *, layers: int | None = None, fields: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """Read a shape as a transformers configuration.

    Args:
        name_or_path: a name of `shape_names()`, with or without `shape:`, or a YAML file.
        layers: how many layers instead of the shape's own.
        fields: configuration fields that win over the file's.

    Raises:
        ConfigError: there is no such shape, or a field is unknown or cannot be honoured.
    """
    path = _find(str(name_or_path).removeprefix(SHAPE_PREFIX))
    values = read_yaml(path) | dict(fields or {})
    if layers is not None:
        values["num_hidden_layers"] = layers
    model_type = values.pop("model_type", None)
    served = {config_class.model_type for config_class in MODEL_FOR_CAUSAL_LM_MAPPING}
    if model_type not in served:
        raise ConfigError(
            f"{path}: model_type {model_type!r} is no causal language model of transformers; "
            f"{suggest(str(model_type), served)}."
        )
    known = _known_fields(model_type)
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{path}: {model_type} has no field {name!r}; {suggest(str(name), known)}."
            )
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **values)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"{path}: its fields cannot be honoured: {error}") from error
    return config


def load_shape(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    device: torch.device,
    layers: int | None = None,
    fields: Mapping[str, Any] | None = None,
    seed: int = 0,
    fuse_projections: bool = True,
    quantization: str = NONE,
) -> LoadedModel:
    """Make a model of a shape with random weights, right on the device.

    Args:
        name_or_path: a name of `shape_names()`, with or without `shape:`, or a YAML file.
        dtype: `auto` (float32 on CPU, else the shape's own), or a name of one.
        device: where the weights are made.
        layers: how many layers instead of the shape's own.
        fields: configuration fields that win over the file's.
        seed: of the weights.
        fuse_projections: see `engine.model.loader.from_model`.
        quantization: see `engine.model.loader.from_model`.

    Raises:
        ConfigError: there is no such shape, or a field is unknown or cannot be honoured; or the
            quantization cannot.
        ModelNotSupportedError: the architecture cannot be served.
        OutOfMemoryError: the weights do not fit on the device.
    """
    config = shape_config(name_or_path, layers=layers, fields=fields)
    wanted = dtype_to_load(dtype, device)
    if quantization == INT8:
        check_int8(device, wanted)
    try:
        model = random_model(config, dtype=wanted, device=device, seed=seed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{name_or_path}: its weights do not fit on {device}: {error}; "
            "take a smaller shape, fewer layers or a smaller dtype."
        ) from error
    name = SHAPE_PREFIX + str(name_or_path).removeprefix(SHAPE_PREFIX)
    return from_model(
        model, name=name, fuse_projections=fuse_projections, quantization=quantization
    )


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in shape_names():
        raise ConfigError(f"model: there is no shape {name!r}; {suggest(name, shape_names())}.")
    return SHAPES / f"{name}.yaml"


def _known_fields(model_type: str) -> set[str]:
    config_class = CONFIG_MAPPING[model_type]
    declared = {*config_class().to_dict(), *config_class.attribute_map}
    return (declared | _ALWAYS_READ) - {"model_type"}
