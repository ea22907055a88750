"""What the parts share: the device, its ceilings, and models that are loaded once.

The models have the shapes of known ones and random weights, so nothing has to be downloaded.
"""

from __future__ import annotations

import gc
import importlib
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.ceilings import Ceilings, measure_ceilings
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.tiny_models import TINY_SHAPES, tiny_model
from engine.config import ModelConfig
from engine.model.loader import LoadedModel
from engine.model.shapes import load_shape
from engine.model_pair import compile_if_asked


@dataclass(slots=True)
class Workshop:
    """The device and what lies on it.

    Attributes:
        device: where everything is measured.
        sizes: how large it is.
        dtype: of weights and activations.
    """

    device: torch.device
    sizes: Sizes
    dtype: torch.dtype = torch.bfloat16
    _ceilings: Ceilings | None = None
    _models: dict[str, LoadedModel] = field(default_factory=dict)

    @property
    def ceilings(self) -> Ceilings:
        """What the device can do at most; measured when first asked for."""
        if self._ceilings is None:
            self._ceilings = measure_ceilings(self.sizes, self.device, self.dtype)
            free_memory()
        return self._ceilings

    @property
    def target(self) -> LoadedModel:
        """The model that is measured."""
        return self.model(self.sizes.target)

    def model(self, shape: str) -> LoadedModel:
        """Give a model of a shape, loaded when first asked for."""
        if shape not in self._models:
            self._models[shape] = self._load(shape)
        return self._models[shape]

    def _load(self, shape: str) -> LoadedModel:
        if shape in TINY_SHAPES:
            return tiny_model(shape, self.dtype, self.device)
        dtype = str(self.dtype).removeprefix("torch.")
        loaded = load_shape(shape, dtype=dtype, device=self.device)
        compile_if_asked(ModelConfig(), loaded)
        return loaded

    def drop_models(self) -> None:
        """Give back the memory of all models."""
        self._models.clear()
        free_memory()

    def random(self, *shape: int) -> torch.Tensor:
        """Make a tensor of random numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)


def ours(module: str, name: str) -> Any:
    """Find something of this house when it is needed.

    Where it cannot be imported, because a machine lacks what it is made with, the part that needs
    it fails, and the others are measured.

    Raises:
        ImportError: it cannot.
    """
    return getattr(importlib.import_module(module), name)


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
