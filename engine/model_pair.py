"""Loads the target and its draft, and finds out how they understand each other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import psutil
import torch

from engine.config import AUTO, ON, SHAPE_PREFIX, EngineConfig, ModelConfig
from engine.errors import ConfigError, ModelNotSupportedError
from engine.model.fused_gates import fuse_gates
from engine.model.fused_norms import fuse_norms
from engine.model.loader import LoadedModel, load_model
from engine.model.native_layers import use_native_layers
from engine.model.self_check import check_model
from engine.model.shapes import load_shape
from engine.speculative.layer_choice import choose_layers, trial_prompts
from engine.tokenization import Tokenizer, load_tokenizer
from engine.vocabularies import ForeignVocabulary, Vocabulary, choose_vocabulary
from kernels.launch import Overlap, can_overlap
from kernels.rms_norm_cpu import serves

logger = logging.getLogger(__name__)


def _no_tokenizer() -> Tokenizer | None:
    return None


@dataclass(frozen=True, slots=True)
class ModelPair:
    """The models of one engine.

    Attributes:
        target: the model whose words are written.
        draft: the model that drafts, when speculating with one.
        load_tokenizer: loads the target's tokenizer, for what the engine itself needs it.
        foreign: how the draft is understood, where it has a vocabulary of its own.
        kept_layers: the target's layers that draft, where it drafts for itself.
    """

    target: LoadedModel
    draft: LoadedModel | None = None
    load_tokenizer: Callable[[], Tokenizer | None] = _no_tokenizer
    foreign: ForeignVocabulary | None = None
    kept_layers: tuple[int, ...] | None = None


def load_pair(config: EngineConfig) -> ModelPair:
    """Load what `config` names, and check that it can be served.

    Raises:
        ModelLoadError: a checkpoint cannot be loaded, is not supported, or does not fit.
        DraftMismatchError: the draft's words cannot be understood.
        ConfigError: the configuration names no model, or an unavailable device.
    """
    return add_draft(config, load_target(config))


def load_target(config: EngineConfig) -> ModelPair:
    """Load the target alone; `add_draft` puts any number of drafts beside it.

    Raises:
        ModelLoadError: the checkpoint cannot be loaded, is not supported, or does not fit.
        ConfigError: the configuration names no model, or an unavailable device.
    """
    model = config.model
    if model.model is None:
        raise ConfigError("model: no model is named, and the demo pair was not filled in.")
    set_threads(model.threads)
    if config.runner.overlap_kernels:
        overlap_kernels(resolve_device(model.device))
    target = _load(model, model.model, model.revision, resolve_device(model.device))
    load_own = partial(load_tokenizer, model.model, model.revision, model.trust_remote_code)
    return ModelPair(target, load_tokenizer=load_own)


def add_draft(config: EngineConfig, alone: ModelPair) -> ModelPair:
    """Give a target that is loaded what `config` drafts with.

    Raises:
        ModelLoadError: the draft cannot be loaded, is not supported, or does not fit.
        DraftMismatchError: the draft's words cannot be understood.
        ConfigError: drafts are asked for, and nobody is named to make them.
    """
    model, speculation, target = config.model, config.speculation, alone.target
    if speculation.num_draft_tokens and not speculation.drafters:
        raise ConfigError(
            f"speculation: {speculation.num_draft_tokens} draft tokens need somebody who drafts; "
            "give --draft, or --speculation off."
        )
    name = speculation.draft_model
    if speculation.is_off or (name is None and not speculation.skips_layers):
        return alone
    tokenizer = alone.load_tokenizer()
    if name is None:
        choice = choose_layers(target, trial_prompts(tokenizer, target))
        return replace(alone, kept_layers=choice.kept)
    draft = _load(model, name, speculation.draft_revision, target.device)
    draft_tokenizer = load_tokenizer(name, speculation.draft_revision, model.trust_remote_code)
    foreign = choose_vocabulary(
        speculation.draft_vocabulary,
        Vocabulary(target, tokenizer),
        Vocabulary(draft, draft_tokenizer),
    )
    return replace(alone, draft=draft, foreign=foreign)


def _load(model: ModelConfig, name: str, revision: str | None, device: torch.device) -> LoadedModel:
    if name.startswith(SHAPE_PREFIX):
        loaded = _load_shape(model, name, revision, device)
    else:
        loaded = load_model(
            name,
            revision=revision,
            dtype=model.dtype,
            device=device,
            trust_remote_code=model.trust_remote_code,
            allow_pickle=model.allow_pickle,
            load_weights=model.load_weights,
            fuse_projections=model.fuse_projections,
            quantization=model.quantization,
        )
    check_model(loaded)
    compile_if_asked(model, loaded)
    return loaded


def _load_shape(
    model: ModelConfig, name: str, revision: str | None, device: torch.device
) -> LoadedModel:
    if revision is not None:
        raise ConfigError(f"revision: {revision!r} is of no hub id; {name} has none.")
    return load_shape(
        name,
        dtype=model.dtype,
        device=device,
        fuse_projections=model.fuse_projections,
        quantization=model.quantization,
    )


def compile_if_asked(model: ModelConfig, loaded: LoadedModel) -> None:
    """Compile a loaded model's layers, where the settings say so.

    Layers that are not compiled get our own kernels instead: for norms, and on CUDA for gates.

    Raises:
        ModelNotSupportedError: that was asked for by name, and they cannot be compiled.
    """
    is_cuda = loaded.device.type == "cuda"
    if model.compile == ON or (model.compile == AUTO and is_cuda):
        # What compiles takes seconds to import, and most machines never need it.
        from engine.model.compiled import compile_layers

        try:
            compile_layers(loaded)
            return
        except ModelNotSupportedError as error:
            if model.compile == ON:
                raise
            logger.warning("not_compiled model=%s reason=%s", loaded.name, error)
    if is_cuda or serves(loaded.dtype):
        fuse_norms(loaded.model)
    if is_cuda:
        fuse_gates(loaded.model)
    elif model.native_layers:
        use_native_layers(loaded)


def resolve_device(name: str) -> torch.device:
    """Turn a device name into a device; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a torch device ({error}).") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} asked for, but torch sees no CUDA device.")
    return device


def overlap_kernels(device: torch.device) -> None:
    """Let the kernels of this process overlap, ours and those that torch.compile makes.

    Raises:
        ConfigError: the device cannot do that.
    """
    if device.type != "cuda" or not can_overlap(device):
        raise ConfigError(
            f"overlap_kernels: {device} cannot; CUDA devices of compute capability 9 and later can."
        )
    from engine.model.compiled import compiled_overlap

    Overlap.is_wanted = True
    compiled_overlap()


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of this process; None means one per physical core."""
    torch.set_num_threads(threads or psutil.cpu_count(logical=False) or 1)
