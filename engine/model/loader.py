"""Loads transformers models for the packed, paged forward pass, or refuses them by name.

What a model's layers store is found by watching one tiny forward pass, not by reading config
fields that each family names differently. Hub access, caches and progress are transformers' own.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from engine.config import INT8, NONE
from engine.errors import ModelLoadError, ModelNotSupportedError, OutOfMemoryError
from engine.kv_cache.storage import LayerKVSpec
from engine.model import fused_projections
from engine.model.attention import (
    PAGED_ATTENTION,
    PROBE_ATTENTION,
    Attend,
    AttentionCall,
    LayersAtOnce,
    ProbeContext,
    mask_function_of,
    use_attention_context,
)
from engine.model.experts import choose_experts
from engine.model.int8_weights import check_int8, check_layers, leave_files, use_int8_linear
from engine.model.linear import use_few_rows_linear
from engine.model.packed_weights import has_memory_for
from engine.model.random_weights import random_model
from engine.model.streamed_weights import load_streamed
from kernels.attention_backends import AttentionKind
from kernels.paged_attention import paged_attention

logger = logging.getLogger(__name__)

_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class LoadedModel:
    """A model ready for `forward_packed`.

    Attributes:
        model: the transformers model, its attention going through the paged cache.
        config: the model's own configuration.
        name: as it was asked for.
        vocab_size: width of the logits; may exceed the tokenizer's vocabulary.
        layers: what each layer stores per token, in layer order.
        sliding_windows: keys each layer sees at most, in layer order; None = all.
        max_model_len: tokens of prompt and answer at most.
        eos_token_ids: tokens that end an answer.
        dtype: of the activations and of the KV cache.
        device: where the weights are.
        weight_bytes: size of parameters and buffers.
        keeps_logits: whether the model can compute the logits of some rows alone.
        attention_kinds: how each layer attends, in layer order.
        attend: what computes attention; our own kernels unless somebody is faster.
        native: what runs the layers of small passes at once, if anything does.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    name: str
    vocab_size: int
    layers: list[LayerKVSpec]
    sliding_windows: list[int | None]
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int
    keeps_logits: bool
    attention_kinds: list[AttentionKind]
    attend: Attend = paged_attention
    native: LayersAtOnce | None = None


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: torch.device,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    load_weights: bool = True,
    fuse_projections: bool = True,
    quantization: str = NONE,
) -> LoadedModel:
    """Load a causal language model by hub id or from a local folder.

    Args:
        name: hub id or folder.
        revision: branch, tag or commit of a hub id.
        dtype: `auto` (float32 on CPU, else the checkpoint's own), or a name of one.
        device: where the weights go.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: also read weights that are no safetensors; pickles can run code.
        load_weights: false = random weights at the checkpoint's shapes.
        fuse_projections: see `from_model`.
        quantization: see `from_model`.

    Raises:
        ConfigError: the quantization cannot be honoured here.
        ModelLoadError: the checkpoint cannot be found or read.
        ModelNotSupportedError: the architecture cannot be served.
        OutOfMemoryError: the weights do not fit on the device.
    """
    origin = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **origin)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelLoadError(f"{name}: its configuration cannot be loaded: {error}") from error
    _check_config(config, name)
    _check_is_causal_lm(config, name)
    wanted = dtype_to_load(dtype, device)
    if quantization == INT8:
        check_int8(device, wanted)
    try:
        if load_weights:
            files = {"use_safetensors": None if allow_pickle else True}
            model = _with_weights(name, config, wanted, device, origin | files)
        else:
            model = random_model(
                config, dtype=wanted, device=device, trust_remote_code=trust_remote_code
            )
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{name}: its weights do not fit on {device}: {error}; "
            "take a smaller model or a smaller dtype."
        ) from error
    except _LOADING_ERRORS as error:
        raise ModelLoadError(_describe_failure(name, error, allow_pickle)) from error
    return from_model(
        model, name=name, fuse_projections=fuse_projections, quantization=quantization
    )


def from_model(
    model: PreTrainedModel,
    *,
    name: str | None = None,
    fuse_projections: bool = True,
    quantization: str = NONE,
) -> LoadedModel:
    """Make a transformers model that is already in memory ready for `forward_packed`.

    The model's attention implementation and its projections are changed in place; on CUDA that of
    its experts, too.

    Args:
        model: the model.
        name: what it is called; None = as it calls itself.
        fuse_projections: compute projections that read the same input as one product.
        quantization: `int8` = linear layers hold int8 weights and let go of their float ones.

    Raises:
        ConfigError: the quantization cannot be honoured here.
        ModelNotSupportedError: the architecture cannot be served.
    """
    architecture = type(model).__name__
    _check_config(model.config, architecture)
    model.eval().requires_grad_(False)
    choose_experts(model)
    text_config = model.config.get_text_config(decoder=True)
    max_model_len = _max_model_len(text_config, architecture)
    _choose_linear(model, fuse_projections=fuse_projections, quantization=quantization)
    calls, vocab_size = watch_attention(model, architecture)
    fused_projections.separate_unshared(model)
    _check_layers(calls, text_config, architecture)
    distinct = {(id(call.mask), call.sliding_window): call for call in reversed(calls)}
    for call in reversed(distinct.values()):
        _check_mask(call, max_model_len, architecture)
    weights = [*model.parameters(), *model.buffers()]
    return LoadedModel(
        model=model,
        config=model.config,
        name=name or model.config.name_or_path or architecture,
        vocab_size=vocab_size,
        layers=[_kv_spec(call) for call in calls],
        sliding_windows=[call.sliding_window for call in calls],
        max_model_len=max_model_len,
        eos_token_ids=_eos_token_ids(model, text_config),
        dtype=model.dtype,
        device=model.device,
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        keeps_logits="logits_to_keep" in inspect.signature(model.forward).parameters,
        attention_kinds=[_kind_of(call) for call in calls],
    )


def _choose_linear(model: PreTrainedModel, *, fuse_projections: bool, quantization: str) -> None:
    """Choose how linear layers multiply: one by one or together, with which weights."""
    is_int8 = quantization == INT8
    if is_int8:
        check_int8(model.device, model.dtype)
        check_layers(model)
    packs = not is_int8 and model.device.type == "cpu" and has_memory_for(model)
    if fuse_projections:
        fused_projections.fuse(model, packs=packs, quantises=is_int8)
    if is_int8:
        use_int8_linear(model)
        leave_files(model)
    use_few_rows_linear(model, packs=packs)


def _with_weights(
    name: str,
    config: PreTrainedConfig,
    dtype: torch.dtype | str,
    device: torch.device,
    origin: dict[str, Any],
) -> PreTrainedModel:
    streamed = None
    if device.type in ("cpu", "cuda") and not origin["trust_remote_code"]:
        streamed = load_streamed(name, config, dtype=dtype, device=device)
    if streamed is not None:
        return streamed
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": PAGED_ATTENTION}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    model: Any = AutoModelForCausalLM.from_pretrained(name, config=config, **options, **origin)
    assert isinstance(model, PreTrainedModel), "it is a model of transformers"
    return model


def _describe_failure(name: str, error: Exception, allow_pickle: bool) -> str:
    said = f"{name}: the model cannot be loaded: {error}"
    if allow_pickle or not isinstance(error, OSError) or ".safetensors" not in str(error):
        return said
    return (
        f"{said} Pickles (.bin) can run their makers' code, so only safetensors are loaded: "
        "convert them, or trust whoever made them and start with --allow-pickle."
    )


def dtype_to_load(dtype: str, device: torch.device) -> torch.dtype | str:
    """Give the dtype of a name; `auto` is float32 on the CPU and elsewhere stays `auto`."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return _DTYPES[dtype]


def _check_config(config: PreTrainedConfig, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelNotSupportedError(
            f"{name} ({config.model_type}) is an encoder-decoder; only decoders are served."
        )
    if getattr(config.get_text_config(decoder=True), "add_cross_attention", False):
        raise ModelNotSupportedError(f"{name} ({config.model_type}) uses cross-attention.")


def _check_is_causal_lm(config: PreTrainedConfig, name: str) -> None:
    in_remote_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not in_remote_code:
        raise ModelNotSupportedError(
            f"{name} ({config.model_type}): transformers has no causal language model of this type."
        )


def _max_model_len(text_config: Any, name: str) -> int:
    limit = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 2:
        raise ModelNotSupportedError(
            f"{name}: its configuration has no max_position_embeddings, so its context is unknown."
        )
    constant = min((limit, *_constant_rope_lengths(text_config)))
    if constant < limit:
        logger.warning(
            "max_model_len=%d model=%s model_limit=%d reason=longrope changes with the longest "
            "request of a batch beyond this length",
            constant,
            name,
            limit,
        )
    return constant


def _constant_rope_lengths(text_config: Any) -> list[int]:
    """Return the lengths up to which rotary embeddings do not change with the batch's longest.

    Dynamic NTK scaling changes beyond max_position_embeddings only, which is the limit anyway.
    """
    parameters = getattr(text_config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return [
        own["original_max_position_embeddings"]
        for own in (parameters, *by_layer_type)
        if own.get("rope_type") == "longrope"
    ]


def watch_attention(model: PreTrainedModel, name: str) -> tuple[list[AttentionCall], int]:
    """Watch one forward pass of three tokens; returns its attention calls and the logits' width.

    Raises:
        ModelNotSupportedError: there is none; names the model and why.
    """
    probe = ProbeContext()
    token_ids = torch.zeros(1, 3, dtype=torch.int64, device=model.device)
    positions = torch.arange(3, device=model.device).unsqueeze(0)
    try:
        set_attention(model, PROBE_ATTENTION, name)
        with torch.inference_mode(), use_attention_context(probe):
            logits = model(input_ids=token_ids, position_ids=positions, use_cache=False).logits
    except ModelNotSupportedError as error:
        raise ModelNotSupportedError(f"{name}: {error}") from error
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelNotSupportedError(
            f"{name}: a forward pass of packed tokens failed: {error}"
        ) from error
    finally:
        set_attention(model, PAGED_ATTENTION, name)
    return probe.calls, logits.shape[-1]


def set_attention(model: PreTrainedModel, implementation: str, name: str) -> None:
    """Make the model's layers use another attention implementation.

    Raises:
        ModelNotSupportedError: they do not follow; names the architecture.
    """
    model.set_attn_implementation(implementation)
    if model.config.get_text_config(decoder=True)._attn_implementation != implementation:
        raise ModelNotSupportedError(
            f"{name}: its attention does not go through transformers' AttentionInterface."
        )


def _check_layers(calls: list[AttentionCall], text_config: Any, name: str) -> None:
    called = [call.layer_idx for call in calls]
    num_layers = text_config.num_hidden_layers
    if called != list(range(num_layers)):
        raise ModelNotSupportedError(
            f"{name}: of {num_layers} layers, attention was called for layers {called}; every "
            "layer must call it once (linear attention and state-space layers are not served)."
        )


def _check_mask(call: AttentionCall, max_model_len: int, name: str) -> None:
    """Compare the rule of the model's own mask with what the attention call says of it."""
    if call.mask is None:
        return
    rule = mask_function_of(call.mask)
    if rule is None:
        raise ModelNotSupportedError(f"{name}: layer {call.layer_idx} makes a mask of its own.")
    device = call.query.device
    zero = torch.zeros((), dtype=torch.int64, device=device)
    keys = torch.arange(max_model_len + 1, device=device)
    for position in {0, max_model_len // 2, max_model_len - 2, max_model_len - 1}:
        row = torch.tensor(position, device=device)
        expected = keys <= row
        if call.sliding_window is not None:
            expected &= keys > row - call.sliding_window
        try:
            visible = rule(zero, zero, row, keys).expand_as(expected)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelNotSupportedError(
                f"{name}: layer {call.layer_idx} masks by a rule that holds for one prompt only: "
                f"{error}"
            ) from error
        if not torch.equal(expected, visible):
            raise ModelNotSupportedError(
                f"{name}: layer {call.layer_idx} masks other keys than its attention call says "
                f"(sliding_window={call.sliding_window}); its kind of mask is not supported."
            )


def _kv_spec(call: AttentionCall) -> LayerKVSpec:
    head_dim, value_head_dim = call.key.shape[2], call.value.shape[2]
    return LayerKVSpec(
        num_kv_heads=call.key.shape[1],
        head_dim=head_dim,
        value_head_dim=None if value_head_dim == head_dim else value_head_dim,
    )


def _kind_of(call: AttentionCall) -> AttentionKind:
    return AttentionKind(
        num_heads=call.query.shape[1],
        num_kv_heads=call.key.shape[1],
        head_dim=call.query.shape[2],
        value_head_dim=call.value.shape[2],
        sliding_window=call.sliding_window,
        has_softcap=call.softcap is not None,
        has_sinks=call.sinks is not None,
    )


def _eos_token_ids(model: PreTrainedModel, text_config: Any) -> tuple[int, ...]:
    generation: Any = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = getattr(text_config, "eos_token_id", None)
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)
