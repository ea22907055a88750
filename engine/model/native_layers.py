"""Lets the decoder layers of a model be run by one C function on a CPU, where they are of its kind.

A layer is known by the names that transformers gives to the parts of nearly every decoder, and its
model's passes must then give what they gave before. The first layer's `forward` runs all layers,
the others hand on. Knows nothing of any architecture; what is of another kind is left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.errors import ModelNotSupportedError
from engine.kv_cache.storage import KVCacheStorage
from engine.model.attention import AttentionCall, AttentionContext, current_context
from engine.model.decoder_layers import paths_of_layers
from engine.model.fused_norms import FusedNorm
from engine.model.loader import LoadedModel, watch_attention
from engine.model.packed_weights import packed_matrix_of
from engine.model.self_check import chunked_logits, compare_logits
from kernels.attention_plan import AttentionPlan
from kernels.decoder_layers_cpu import (
    GELU_TANH,
    SILU,
    DecoderLayers,
    DecoderShape,
    LayerWeights,
    ModelEnds,
    check_ends,
    check_weights,
)
from kernels.packed_matrix import PackedMatrix, serves
from kernels.paged_attention_cpu import AttendedRows
from kernels.paged_layout import PagedLayout

logger = logging.getLogger(__name__)

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
# What they may have beside: they hold no weights, and a comparison shows what they do.
_WITHOUT_WEIGHTS = {"act_fn", "rotary_emb"}
_BASE = {"embed_tokens", "layers", "norm", "rotary_emb"}
_HEAD = "lm_head"
# Rotations of so many are kept, 16 MiB with heads of 128; beyond, passes compute them.
_MOST_POSITIONS = 16384


class _OtherKindError(Exception):
    """The layers are of another kind; says how."""


@dataclass(slots=True, eq=False)
class NativeLayers:
    """The layers of one model in the form that the C function takes.

    Attributes:
        layers: those that run, in order.
        indices: of each in the storage.
        shape: of all.
        weights: of each.
        dtype: of weights and cache.
        ends: of the model, where they are of the usual kind too.
    """

    layers: list[nn.Module]
    indices: list[int]
    shape: DecoderShape
    weights: list[LayerWeights]
    dtype: torch.dtype
    ends: ModelEnds | None = None
    _over: tuple[KVCacheStorage, DecoderLayers] | None = None

    def subset(self, kept: Iterable[int]) -> NativeLayers | None:
        """Return some of the layers, by their indices; None where none is left."""
        places = [place for place, index in enumerate(self.indices) if index in set(kept)]
        if not places:
            return None
        return NativeLayers(
            layers=[self.layers[place] for place in places],
            indices=[self.indices[place] for place in places],
            shape=self.shape,
            weights=[self.weights[place] for place in places],
            dtype=self.dtype,
            ends=self.ends,
        )

    def forward(
        self,
        storage: KVCacheStorage,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        plan: AttentionPlan | PagedLayout,
        logits_rows: torch.Tensor,
    ) -> torch.Tensor | None:
        """Run the whole model, to float32 logits; None for passes of another kind.

        Args are `forward_packed`'s.
        """
        ends, attended = self.ends, _all_rows(plan)
        if ends is None or attended is None or int(positions.max()) >= ends.cos.shape[0]:
            return None
        layers = self._over_caches(storage)
        return layers.run_model(token_ids, positions, slot_mapping, attended, logits_rows)

    def prepare(
        self,
        storage: KVCacheStorage,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        attended: AttendedRows,
        last_position: int,
    ) -> Callable[[], torch.Tensor] | None:
        """Lay out passes of one row per request, all of whose logits are wanted.

        Args:
            storage: the model's caches.
            token_ids: [num_rows] int64; what it and the next three hold may change between passes.
            positions: [num_rows] int64.
            slot_mapping: [num_rows] int64.
            attended: the rows.
            last_position: of any of them.

        Returns:
            What runs a pass and gives its logits, [num_rows, vocab] float32, until the next one;
            None for passes of another kind.
        """
        ends = self.ends
        if ends is None or last_position >= ends.cos.shape[0]:
            return None
        rows = torch.arange(attended.num_rows)
        layers = self._over_caches(storage)
        return layers.prepare(token_ids, positions, slot_mapping, attended, rows)

    def run(
        self, context: AttentionContext, hidden_states: torch.Tensor, keywords: dict[str, Any]
    ) -> torch.Tensor | None:
        """Run all layers; returns what the last one gives, or None for passes of another kind.

        Args:
            context: of the pass.
            hidden_states: [1, num_rows, hidden].
            keywords: what the model gave to its first layer.
        """
        attended, rotation = _all_rows(context.plan), keywords.get("position_embeddings")
        if (
            attended is None
            or not isinstance(rotation, tuple)
            or keywords.get("attention_mask") is not None
            or hidden_states.dtype != self.dtype
        ):
            return None
        hidden = hidden_states[0].to(torch.float32, copy=True).contiguous()
        cos, sin = (part.reshape(len(hidden), -1).float().contiguous() for part in rotation)
        self._over_caches(context.storage).run(hidden, cos, sin, context.slot_mapping, attended)
        return hidden.to(self.dtype).unsqueeze(0)

    def _over_caches(self, storage: KVCacheStorage) -> DecoderLayers:
        if self._over is None or self._over[0] is not storage:
            pairs = [(storage.key_caches[i], storage.value_caches[i]) for i in self.indices]
            self._over = (storage, DecoderLayers(self.shape, self.weights, pairs, self.ends))
        return self._over[1]


def _all_rows(plan: AttentionPlan | PagedLayout) -> AttendedRows | None:
    """Return a pass's rows, if the C function attends from all of them."""
    return plan.attended if isinstance(plan, AttentionPlan) and not plan.groups else None


@dataclass(slots=True, eq=False)
class _Forward:
    """Stands in for one layer's `forward`."""

    layer: nn.Module

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        context = current_context()
        if isinstance(context, AttentionContext) and context.native is not None and not args:
            if context.is_run:
                return hidden_states
            if self.layer is context.native.layers[0]:
                result = context.native.run(context, hidden_states, keywords)
                if result is not None:
                    context.is_run = True
                    return result
        return type(self.layer).forward(self.layer, hidden_states, *args, **keywords)


def use_native_layers(loaded: LoadedModel) -> bool:
    """Let a model's layers be run by the C function, in place, if they are of its kind.

    Args:
        loaded: a model on a CPU that `check_model` has passed, its norms and projections fused.

    Returns:
        Whether they are.
    """
    try:
        native = _recognise(loaded)
    except _OtherKindError as reason:
        logger.info("native_layers=no model=%s reason=%s", loaded.name, reason)
        return False
    expected = chunked_logits(loaded)
    for layer in native.layers:
        layer.forward = _Forward(layer)
    if not _is_same(loaded, native, expected):
        for layer in native.layers:
            del layer.forward
        return False
    ends = _ends(loaded, native)
    has_ends = ends is not None and _is_same(loaded, replace(native, ends=ends), expected)
    if not has_ends:
        loaded.native = native
    logger.info("native_layers=%d model=%s ends=%s", len(native.layers), loaded.name, has_ends)
    return True


def _is_same(loaded: LoadedModel, native: NativeLayers, expected: list[torch.Tensor]) -> bool:
    """Whether a model gives the same by these layers, which it has from now on if so."""
    before, loaded.native = loaded.native, native
    try:
        compare_logits(loaded, "native layers and its own", chunked_logits(loaded), expected)
    except ModelNotSupportedError as error:
        loaded.native = before
        logger.info("native_layers=no model=%s reason=%s", loaded.name, error)
        return False
    return True


def _ends(loaded: LoadedModel, native: NativeLayers) -> ModelEnds | None:
    """Find the ends of a model, if they have the usual names."""
    base = loaded.model.base_model
    parts = {loaded.model.base_model_prefix, _HEAD}
    if set(base._modules) != _BASE or set(loaded.model._modules) != parts:
        return None
    embedding, norm = base.get_submodule("embed_tokens"), base.get_submodule("norm")
    head = packed_matrix_of(loaded.model.get_submodule(_HEAD))
    factors = vars(norm).get("forward")
    if (
        type(embedding) is not nn.Embedding
        or not isinstance(factors, FusedNorm)
        or factors.epsilon != native.shape.epsilon
        or head is None
    ):
        return None
    positions = torch.arange(min(loaded.max_model_len, _MOST_POSITIONS)).unsqueeze(0)
    cos, sin = base.get_submodule("rotary_emb")(torch.zeros(1), position_ids=positions)
    ends = ModelEnds(
        embedding=embedding.weight.detach(),
        norm=factors.factors(),
        head=head,
        cos=cos[0].float().contiguous(),
        sin=sin[0].float().contiguous(),
    )
    try:
        check_ends(ends, native.weights[0].down.outputs, native.dtype)
    except ValueError as reason:
        logger.info("native_ends=no model=%s reason=%s", loaded.name, reason)
        return None
    return ends


def _recognise(loaded: LoadedModel) -> NativeLayers:
    if loaded.device.type != "cpu" or not serves(loaded.dtype):
        raise _OtherKindError(f"no function for {loaded.dtype} on {loaded.device}")
    paths = paths_of_layers(loaded)
    if len(paths) != 1:
        raise _OtherKindError(f"{len(paths)} lists of layers")
    layers = list(loaded.model.get_submodule(paths[0]).children())
    calls, _ = watch_attention(loaded.model, loaded.name)
    shapes = {_shape(layer, call) for layer, call in zip(layers, calls, strict=True)}
    if len(shapes) != 1:
        raise _OtherKindError("layers of different shapes")
    shape = shapes.pop()
    return NativeLayers(
        layers=layers,
        indices=list(range(len(layers))),
        shape=shape,
        weights=[
            _weights(layer, call, shape, loaded.dtype)
            for layer, call in zip(layers, calls, strict=True)
        ],
        dtype=loaded.dtype,
    )


def _shape(layer: nn.Module, call: AttentionCall) -> DecoderShape:
    if "forward" in vars(layer):
        raise _OtherKindError("something has replaced its layers' forward")
    if set(layer._modules) != _LAYER:
        raise _OtherKindError(f"layers have {', '.join(sorted(layer._modules))}")
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    for parts, needed, allowed in (
        (set(attention._modules), _ATTENTION, _HEAD_NORMS | _WITHOUT_WEIGHTS),
        (set(mlp._modules), _MLP, _WITHOUT_WEIGHTS),
    ):
        if not needed <= parts <= needed | allowed:
            raise _OtherKindError(f"layers have {', '.join(sorted(parts))}")
    _, num_heads, head_dim = call.query.shape
    if call.value.shape[2] != head_dim or call.sinks is not None:
        raise _OtherKindError("values of another size than keys, or sinks")
    norms = [_norm(layer, "input_layernorm"), _norm(layer, "post_attention_layernorm")]
    heads = [_norm(attention, name) for name in sorted(_HEAD_NORMS & set(attention._modules))]
    epsilons = [{norm.epsilon for norm in those} for those in (norms, heads)]
    if any(len(own) > 1 for own in epsilons):
        raise _OtherKindError("norms with different epsilons")
    return DecoderShape(
        num_heads=num_heads,
        num_kv_heads=call.key.shape[1],
        head_dim=head_dim,
        activation=_activation(mlp),
        epsilon=epsilons[0].pop(),
        head_epsilon=epsilons[1].pop() if heads else 0.0,
        scaling=call.scaling,
        softcap=call.softcap,
    )


def _weights(
    layer: nn.Module, call: AttentionCall, shape: DecoderShape, dtype: torch.dtype
) -> LayerWeights:
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    has_head_norms = set(attention._modules) >= _HEAD_NORMS
    try:
        weights = LayerWeights(
            input_norm=_norm(layer, "input_layernorm").factors(),
            inner_norm=_norm(layer, "post_attention_layernorm").factors(),
            query_norm=_norm(attention, "q_norm").factors() if has_head_norms else None,
            key_norm=_norm(attention, "k_norm").factors() if has_head_norms else None,
            projections=_matrix(attention, "q_proj"),
            output=_matrix(attention, "o_proj"),
            gate_and_up=_matrix(mlp, "gate_proj"),
            down=_matrix(mlp, "down_proj"),
            window=call.sliding_window,
        )
        check_weights(shape, weights, weights.down.outputs, dtype)
    except ValueError as error:
        raise _OtherKindError(str(error)) from error
    return weights


def _norm(parent: nn.Module, name: str) -> FusedNorm:
    norm = vars(parent.get_submodule(name)).get("forward")
    if not isinstance(norm, FusedNorm):
        raise _OtherKindError(f"{name} is no norm of the usual kind")
    return norm


def _matrix(parent: nn.Module, name: str) -> PackedMatrix:
    matrix = packed_matrix_of(parent.get_submodule(name))
    if matrix is None:
        raise _OtherKindError(f"the weight of {name} is not reordered")
    return matrix


def _activation(mlp: nn.Module) -> int:
    function: Callable[[torch.Tensor], torch.Tensor] | None = getattr(mlp, "act_fn", None)
    x = torch.linspace(-8.0, 8.0, 65)
    known = {SILU: functional.silu(x), GELU_TANH: functional.gelu(x, approximate="tanh")}
    for name, expected in known.items():
        if callable(function) and torch.allclose(function(x), expected, atol=1e-6):
            return name
    raise _OtherKindError("an activation that is neither SiLU nor GELU by tanh")
