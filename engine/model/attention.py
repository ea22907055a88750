"""The door between transformers' attention layers and the paged KV cache.

Registers "outdraft_paged" with transformers' `AttentionInterface`: each layer's call writes the
new keys and values and attends over the cache of the step that `use_attention_context` set. Knows
the interface's keywords and refuses those it does not know; nothing of models or schedules.
Traced by torch.compile, a call is one opaque operator, `outdraft::attend`, which finds its step and
its layer when it runs, so that all layers can share one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from engine.errors import ModelNotSupportedError
from engine.kv_cache.storage import KVCacheStorage
from kernels.kv_cache_write import kv_cache_write
from kernels.paged_attention import AttentionPlan, paged_attention
from kernels.paged_attention_cpu import AttendedRows
from kernels.paged_layout import PagedLayout

PAGED_ATTENTION = "outdraft_paged"
PROBE_ATTENTION = "outdraft_probe"

# Where a traced attention layer keeps its index: as a tensor, since dynamo takes a module's ints
# for constants and would make a graph for each layer.
_LAYER_TENSOR = "outdraft_layer"

# Keywords that reach the interface and have no say in what attention computes.
_INERT_KEYWORDS = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


# Takes what `paged_attention` takes.
Attend = Callable[..., torch.Tensor]


@dataclass(slots=True)
class AttentionCall:
    """One attention layer's call, as the interface gives it.

    Attributes:
        layer_idx: the layer's index in the model.
        query: [num_tokens, num_heads, head_dim].
        key: [num_tokens, num_kv_heads, head_dim].
        value: [num_tokens, num_kv_heads, value_head_dim].
        mask: what the model gave as its mask.
        scaling: factor on the dot products.
        sliding_window: keys a row sees, itself included; None = all.
        softcap: bound of the scores; None = unbounded.
        sinks: [num_heads]; None = no sinks.
    """

    layer_idx: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class LayersAtOnce(Protocol):
    """Runs all decoder layers of a pass at once, where it can.

    Attributes:
        layers: those that it runs, in order.
    """

    layers: list[torch.nn.Module]

    def run(
        self,
        context: AttentionContext,
        hidden_states: torch.Tensor,
        keywords: dict[str, Any],
    ) -> torch.Tensor | None:
        """Run them over what the model gave to the first; None where it cannot."""

    def forward(
        self,
        storage: KVCacheStorage,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        plan: AttentionPlan | PagedLayout,
        logits_rows: torch.Tensor,
    ) -> torch.Tensor | None:
        """Run the whole model, to float32 logits; None where it cannot."""

    def prepare(
        self,
        storage: KVCacheStorage,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        attended: AttendedRows,
        last_position: int,
    ) -> Callable[[], torch.Tensor] | None:
        """Lay out passes of one row per request up to a position; None where it cannot run them."""

    def subset(self, kept: Iterable[int]) -> LayersAtOnce | None:
        """Return what runs some of them, by their indices."""


class _Context(Protocol):
    def attend(self, call: AttentionCall) -> torch.Tensor: ...


@dataclass(slots=True)
class AttentionContext:
    """What every layer of one packed forward pass needs.

    Attributes:
        plan: where each row finds its keys.
        slot_mapping: [num_tokens] int64, where each token's key and value go.
        storage: the model's caches.
        paged_attention: what attends over them.
        native: what may run all layers at once.
        is_run: whether it has, in this pass.
    """

    plan: AttentionPlan | PagedLayout
    slot_mapping: torch.Tensor
    storage: KVCacheStorage
    paged_attention: Attend = paged_attention
    native: LayersAtOnce | None = None
    is_run: bool = False

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Write the call's keys and values, then attend; returns [num_tokens, H, Dv].

        Raises:
            ModelNotSupportedError: the model made a mask of its own.
        """
        if call.mask is not None:
            raise ModelNotSupportedError(
                f"layer {call.layer_idx} brings an attention mask of its own; "
                "it would see tokens of other requests."
            )
        key_cache = self.storage.key_caches[call.layer_idx]
        value_cache = self.storage.value_caches[call.layer_idx]
        dtype = key_cache.dtype
        kv_cache_write(
            call.key.to(dtype), call.value.to(dtype), key_cache, value_cache, self.slot_mapping
        )
        attended = self.paged_attention(
            call.query.to(dtype),
            key_cache,
            value_cache,
            self.plan,
            scaling=call.scaling,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
            sinks=call.sinks,
        )
        return attended.to(call.query.dtype)


@dataclass(slots=True)
class ProbeContext:
    """Records a model's attention calls without computing attention.

    Attributes:
        calls: in the order they came.
    """

    calls: list[AttentionCall] = field(default_factory=list)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Note the call; returns zeros of the right shape."""
        self.calls.append(call)
        return call.query.new_zeros(*call.query.shape[:2], call.value.shape[2])


_current: ContextVar[_Context | None] = ContextVar("attention_context", default=None)


@contextmanager
def use_attention_context(context: AttentionContext | ProbeContext) -> Iterator[None]:
    """Make `context` the one that attention layers of this thread use."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_context() -> _Context | None:
    """Return what attention layers of this thread use now, if anything."""
    return _current.get()


def is_paged_pass() -> bool:
    """Whether a pass over a paged cache is running, not a probe's and not a model's own."""
    context = _current.get()
    return context is not None and not isinstance(context, ProbeContext)


def number_for_tracing(layer: torch.nn.Module, layer_idx: int) -> None:
    """Give a decoder layer's attention its index in the form that traced calls read."""
    number = torch.tensor(layer_idx)
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            setattr(module, _LAYER_TENSOR, number)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Attend for one layer, as `AttentionInterface` wants it.

    Args:
        module: the attention layer.
        query: [1, num_heads, num_tokens, head_dim].
        key: [1, num_kv_heads, num_tokens, head_dim].
        value: [1, num_kv_heads, num_tokens, value_head_dim].
        attention_mask: None, as no mask is made for this implementation.
        keywords: honoured, known to be without effect, or refused.

    Returns:
        [1, num_tokens, num_heads, value_head_dim], and no weights.

    Raises:
        ModelNotSupportedError: the call asks for something that is not served.
    """
    if torch.compiler.is_compiling():
        return _traced(module, query, key, value, attention_mask, keywords), None
    context = _context()
    _check_keywords(module, query, key, keywords)
    if not isinstance(getattr(module, "layer_idx", None), int):
        raise ModelNotSupportedError(f"{type(module).__name__} does not say which layer it is.")
    scaling = keywords.get("scaling")
    call = AttentionCall(
        layer_idx=module.layer_idx,  # type: ignore[arg-type]  # checked above
        query=query[0].transpose(0, 1),
        key=key[0].transpose(0, 1),
        value=value[0].transpose(0, 1),
        mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=keywords.get("sliding_window"),
        softcap=keywords.get("softcap"),
        sinks=keywords.get("s_aux"),
    )
    return context.attend(call).unsqueeze(0), None


def _context() -> _Context:
    context = _current.get()
    if context is None:
        raise ModelNotSupportedError(
            f"attention was called outside of a packed forward pass: {PAGED_ATTENTION} keeps keys "
            "and values in the paged cache; use forward_packed."
        )
    return context


def _traced(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    keywords: dict[str, Any],
) -> torch.Tensor:
    """Do what `attention_forward` does, in a graph; neither the context nor an index is read."""
    _check_keywords(module, query, key, keywords)
    if attention_mask is not None:
        raise ModelNotSupportedError(f"{type(module).__name__} brings a mask of its own.")
    scaling = keywords.get("scaling")
    attended: torch.Tensor = torch.ops.outdraft.attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        getattr(module, _LAYER_TENSOR),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        keywords.get("sliding_window"),
        keywords.get("softcap"),
        keywords.get("s_aux"),
    )
    return attended.unsqueeze(0)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: torch.Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Run `outdraft::attend`; `layer` is on the CPU, so reading it waits for no device."""
    call = AttentionCall(
        int(layer), query, key, value, None, scaling, sliding_window, softcap, sinks
    )
    return _context().attend(call).contiguous()


def _attend_shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> torch.Tensor:
    return query.new_empty(*query.shape[:2], value.shape[2])


_HONOURED_KEYWORDS = frozenset({"scaling", "sliding_window", "softcap", "s_aux"})


def _check_keywords(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    keywords: dict[str, Any],
) -> None:
    for name, value in keywords.items():
        # Names first: a value that tracing does not look at is no input of the graph.
        if name in _HONOURED_KEYWORDS or name in _INERT_KEYWORDS or value is None:
            continue
        if name == "is_causal" and value:
            continue
        if name == "dropout" and value == 0.0:
            continue
        raise ModelNotSupportedError(
            f"{type(module).__name__} passes {name}={_brief(value)} to attention; not supported."
        )
    is_causal = keywords.get("is_causal")
    if is_causal is None and not getattr(module, "is_causal", True):
        raise ModelNotSupportedError(f"{type(module).__name__} is not causal attention.")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ModelNotSupportedError(
            f"{type(module).__name__} attends from {tuple(query.shape)} to {tuple(key.shape)}: "
            "not self-attention of one packed row of tokens."
        )


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{list(value.shape)}"
    return repr(value)[:60]


MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def mask_function_of(mask: torch.Tensor) -> MaskFunction | None:
    """Return the rule behind a mask that the probe's forward made; None if it was not made so."""
    return getattr(mask, "outdraft_mask_function", None)


def _probe_mask(
    *, q_length: int, mask_function: MaskFunction, device: torch.device | None = None, **_: Any
) -> torch.Tensor:
    """Make a mask that carries the rule it stands for, so that the rule can be checked."""
    mask = torch.ones(1, 1, q_length, q_length, dtype=torch.bool, device=device)
    mask.outdraft_mask_function = mask_function  # type: ignore[attr-defined]  # read back above
    return mask


# No mask function is registered for PAGED_ATTENTION: transformers then gives no mask to the layers
# and spends no time on making one; with one registered it looks for packed sequences every step.
AttentionInterface.register(PAGED_ATTENTION, attention_forward)
AttentionInterface.register(PROBE_ATTENTION, attention_forward)
AttentionMaskInterface.register(PROBE_ATTENTION, _probe_mask)

# Defined by hand: `torch.library.custom_op` adds checks of its own to every call. The cache that is
# written is no argument; a call is never dropped or doubled, as what it returns is used once.
_LIBRARY = torch.library.Library("outdraft", "FRAGMENT")
_LIBRARY.define(
    "attend(Tensor query, Tensor key, Tensor value, Tensor layer, float scaling, "
    "int? sliding_window, float? softcap, Tensor? sinks) -> Tensor"
)
_LIBRARY.impl("attend", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("outdraft::attend", _attend_shape, lib=_LIBRARY)
