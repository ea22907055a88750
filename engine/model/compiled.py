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
import torch._inductor.config
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

# What tracing, code generation and the first run of generated code are known to raise.
_FAILURES = (RuntimeError, AssertionError, TypeError, ValueError, ModelNotSupportedError)
_LONGEST_REASON = 400
_WHAT_DYNAMO_SAW = "Developer debug context:"


def compile_layers(loaded: LoadedModel, backend: Backend = "inductor") -> None:
    """Compile the decoder layers of a model, in place, and try them on a few tokens.

    Args:
        loaded: a model that `check_model` has passed.
        backend: of torch.compile.

    Raises:
        ModelNotSupportedError: they cannot be compiled, and are as they were; names the
            architecture and the reason.
    """
    layers = _layers_of(loaded)
    expected = trial_logits(loaded)
    block = _Block(loaded.name, _compiled(type(layers[0]).__name__, backend))
    for index, layer in enumerate(layers):
        number_for_tracing(layer, index)
        layer.forward = _Forward(block, layer)
    start = time.perf_counter()
    try:
        compare_logits(loaded, "compiled layers and eager ones", trial_logits(loaded), expected)
    except _FAILURES as error:
        for layer in layers:
            del layer.forward
        raise _not_compiled(loaded, _brief(error)) from error
    block.is_trial = False
    seconds = time.perf_counter() - start
    logger.info("compiled model=%s layers=%d seconds=%.1f", loaded.name, len(layers), seconds)


def compiled_overlap() -> None:
    """Let generated kernels overlap (`kernels/launch.py`), where this torch can make such."""
    settings = torch._inductor.config.triton
    if hasattr(settings, "enable_pdl"):
        settings.enable_pdl = True
    else:
        logger.warning("overlap_kernels=ours_alone reason=torch %s", torch.__version__)


def _layers_of(loaded: LoadedModel) -> list[nn.Module]:
    paths = paths_of_layers(loaded)
    if len(paths) != 1:
        reason = f"it has {len(paths)} lists of layers with one attention each, not 1"
        raise _not_compiled(loaded, reason)
    layers = list(loaded.model.get_submodule(paths[0]).children())
    if any("forward" in vars(layer) for layer in layers):
        raise _not_compiled(loaded, "something has replaced its layers' forward")
    return layers


def _not_compiled(loaded: LoadedModel, reason: str) -> ModelNotSupportedError:
    return ModelNotSupportedError(
        f"compile: the layers of {loaded.name} ({type(loaded.model).__name__}) cannot be compiled: "
        f"{reason}; give --compile off."
    )


def _brief(error: Exception) -> str:
    """Put a failure into one line; dynamo's explanations are left out, what it saw is not."""
    text = str(error)
    lines = [text, text.partition(_WHAT_DYNAMO_SAW)[2]]
    reasons = [line.strip().split("\n")[0] for line in lines if line.strip()]
    return f"{type(error).__name__}: {'; '.join(reasons)}"[:_LONGEST_REASON]


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


@dataclass(slots=True, eq=False)
class _Forward:
    """Stands in for one layer's `forward`."""

    block: _Block
    layer: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block = self.block
        if block.run is None or not is_paged_pass():
            return type(self.layer).forward(self.layer, *args, **kwargs)
        if block.is_trial:
            _mark_num_tokens((args, kwargs))
            return block.run(self.layer, args, kwargs)
        try:
            return block.run(self.layer, args, kwargs)
        except TorchDynamoException as error:
            # A graph that was to be made anew; raised before anything of the layer ran.
            logger.warning("not_compiled model=%s reason=%s", block.name, _brief(error))
            block.run = None
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
