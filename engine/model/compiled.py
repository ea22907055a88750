"""Compiles a model's decoder layers with torch.compile, all of them as one repeated block.

Every layer calls one compiled function with itself as an argument, and nothing that is traced tells
one layer from the next (attention's index is a tensor, `engine/model/attention.py`). So a model
costs the compilation of one layer, or of one of each kind where windows alternate, once for one
token and once for any number. Knows nothing of any architecture: a layer that cannot be traced in
one piece, or whose logits then differ, is left as it is. Only passes over a paged cache run what is
compiled; a probe, or the model's own attention, runs the layers as transformers wrote them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._dynamo import maybe_mark_dynamic
from torch._dynamo.exc import TorchDynamoException

from engine.errors import ModelNotSupportedError
from engine.model.attention import is_paged_pass, number_for_tracing
from engine.model.decoder_layers import paths_of_layers
from engine.model.loader import LoadedModel
from engine.model.self_check import compare_logits, trial_logits

logger = logging.getLogger(__name__)

Backend = str | Callable[..., Any]
_LONGEST_REASON = 300


def compile_layers(loaded: LoadedModel, backend: Backend = "inductor") -> bool:
    """Compile the decoder layers of a model, in place, and try them on a few tokens.

    A model that cannot be compiled stays as it is, and one line of the log says why.

    Args:
        loaded: a model that `check_model` has passed.
        backend: of torch.compile.

    Returns:
        Whether its layers are compiled.
    """
    name = f"{loaded.name} ({type(loaded.model).__name__})"
    paths = paths_of_layers(loaded)
    if len(paths) != 1:
        return _left_eager(name, f"{len(paths)} lists of layers with one attention each, not 1")
    layers = list(loaded.model.get_submodule(paths[0]).children())
    if any("forward" in vars(layer) for layer in layers):
        return _left_eager(name, "its layers' forward was replaced, maybe by an earlier compilation")
    expected = trial_logits(loaded)
    block = _Block(name, _compiled(type(layers[0]).__name__, backend))
    for index, layer in enumerate(layers):
        number_for_tracing(layer, index)
        layer.forward = _Forward(block, layer)
    start = time.perf_counter()
    try:
        compare_logits(loaded, "compiled layers and eager ones", trial_logits(loaded), expected)
    except ModelNotSupportedError as error:
        block.give_up(error)
    block.is_trial = False
    if block.run is None:
        for layer in layers:
            del layer.forward
        return False
    seconds = time.perf_counter() - start
    logger.info("compiled model=%s layers=%d seconds=%.1f", name, len(layers), seconds)
    return True


def _left_eager(name: str, reason: object) -> bool:
    text = " ".join(str(reason).split())[:_LONGEST_REASON]
    logger.warning("not_compiled model=%s reason=%s", name, text)
    return False


@dataclass(slots=True, eq=False)
class _Block:
    """What the layers of one model share.

    Attributes:
        name: the model's, for the log.
        run: the compiled function; None once it was given up.
        is_trial: whether graphs are being made, for any number of tokens.
    """

    name: str
    run: Callable[..., Any] | None
    is_trial: bool = True

    def give_up(self, reason: Exception) -> None:
        """Run the layers as they were from now on."""
        _left_eager(self.name, reason)
        self.run = None


@dataclass(slots=True, eq=False)
class _Forward:
    """Stands in for one layer's `forward`."""

    block: _Block
    layer: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.block.run is not None and is_paged_pass():
            if self.block.is_trial:
                _mark_num_tokens((args, kwargs))
            try:
                return self.block.run(self.layer, args, kwargs)
            except TorchDynamoException as error:
                # Raised before anything of the layer ran, so it can run otherwise.
                self.block.give_up(error)
        return type(self.layer).forward(self.layer, *args, **kwargs)


def _run_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _compiled(layer_class: str, backend: Backend) -> Callable[..., Any]:
    """Compile `_run_layer` under a code object of its own.

    Dynamo keeps graphs, and counts them against its limit, by code object; so a draft's graphs
    neither count as the target's nor are looked through for them.
    """
    code = _run_layer.__code__.replace(co_name=f"run_{layer_class}")
    function = FunctionType(code, _run_layer.__globals__, code.co_name)
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, fullgraph=True)
    return compiled


def _mark_num_tokens(arguments: Any) -> None:
    """Mark the dimensions that count tokens, so that a graph holds for any number but one."""
    tensors = list(_tensors_in(arguments))
    num_tokens = tensors[0].shape[-2]  # hidden states come first: [1, num_tokens, hidden]
    if num_tokens == 1:
        return
    for tensor in tensors:
        for dim, size in enumerate(tensor.shape):
            if size == num_tokens:
                maybe_mark_dynamic(tensor, dim)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
