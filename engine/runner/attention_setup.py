"""Chooses who computes attention in a model's passes, where an engine's settings leave a choice.

What backends are and how they compare is `kernels/`' business; here are the settings, the sizes of
an engine's passes, and what is said of the choice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from engine.config import AUTO, EngineConfig
from engine.errors import ConfigError
from engine.model.loader import LoadedModel
from engine.runner.loop_setup import decodes_ahead
from kernels.attention_backends import FLASHINFER, TORCH, TRITON, AttentionBackend
from kernels.attention_choice import Timer, TrialSizes, choose_backends
from kernels.attention_flashinfer import FlashInferAttention
from kernels.attention_timer import time_call
from kernels.attention_torch import TorchAttention
from kernels.paged_attention import paged_attention

logger = logging.getLogger(__name__)

# Of the requests that backends are compared on: enough to fill a GPU, little beside its memory.
_MOST_SEQS = 32
_NUM_KEYS = 1024
# Rows of a verify pass where no number of drafts is given.
_FEWEST_VERIFY_ROWS = 4

Makers = dict[str, Callable[[], AttentionBackend]]


def choose_attention(
    config: EngineConfig, models: Sequence[LoadedModel], max_model_len: int
) -> dict[str, str]:
    """Let models attend by the backends that are fastest, or by the one that the settings name.

    Args:
        config: all settings.
        models: the target, and the draft if there is one; what was chosen is put into them.
        max_model_len: tokens of a request at most.

    Returns:
        The backends' names, by model, kind of pass and shape of layers; none off CUDA.

    Raises:
        ConfigError: the backend that was named cannot serve a model here.
    """
    device = models[0].device
    if device.type != "cuda":
        named = config.runner.attention_backend
        if named != AUTO:
            raise ConfigError(
                f"attention_backend: {named} needs a CUDA device, and this is {device}; give auto."
            )
        return {}
    others = installed_backends(config.runner.attention_backend, makers_for(config, device))
    chosen: dict[str, str] = {}
    for role, loaded in zip(("target", "draft"), models, strict=False):
        names = attend_by(config, loaded, others, max_model_len, time_call)
        chosen |= {f"{role} {place}": name for place, name in names.items()}
    torch.cuda.empty_cache()
    return chosen


def makers_for(config: EngineConfig, device: torch.device) -> Makers:
    """Give how the backends beside our own are made that an engine's passes leave room for."""

    def make_flashinfer() -> AttentionBackend:
        if decodes_ahead(config, device):
            raise RuntimeError(
                "it plans each pass on the host, and passes are launched ahead of it; "
                "give --decode-ahead off"
            )
        return FlashInferAttention(device)

    return {TORCH: TorchAttention, FLASHINFER: make_flashinfer}


def installed_backends(named: str, makers: Makers) -> list[AttentionBackend]:
    """Make the backends beside our own that are there, or the one that is named.

    Raises:
        ConfigError: the one that is named is not there.
    """
    backends: list[AttentionBackend] = []
    for name, make in makers.items():
        if named not in (AUTO, name):
            continue
        try:
            backends.append(make())
        except (ImportError, RuntimeError, OSError) as error:
            if named == name:
                raise ConfigError(f"attention_backend: {name} cannot be used: {error}.") from error
            logger.debug("attention backend=%s not_used=%r", name, str(error))
    return backends


def attend_by(
    config: EngineConfig,
    loaded: LoadedModel,
    others: Sequence[AttentionBackend],
    max_model_len: int,
    timer: Timer,
) -> dict[str, str]:
    """Choose for one model, and let it attend so.

    Args:
        config: all settings.
        loaded: the model.
        others: backends beside our own.
        max_model_len: tokens of a request at most.
        timer: see `choose_backends`.

    Returns:
        The backends' names, by kind of pass and shape of layers.

    Raises:
        ConfigError: the backend that was named cannot serve the model.
    """
    named = config.runner.attention_backend
    max_seq_len = min(max_model_len, loaded.max_model_len)
    rows = max(_FEWEST_VERIFY_ROWS, config.speculation.num_draft_tokens + 1)
    sizes = TrialSizes(
        num_seqs=min(_MOST_SEQS, config.scheduler.max_num_seqs),
        num_rows=min(rows, max_seq_len),
        num_keys=min(_NUM_KEYS, max_seq_len),
        num_prompt_tokens=min(config.scheduler.step_tokens, max_seq_len),
        max_seq_len=max_seq_len,
        block_size=config.cache.block_size,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    wanted = None if named in (AUTO, TRITON) else named
    try:
        choice = choose_backends(others, loaded.attention_kinds, sizes, timer, wanted=wanted)
    except ValueError as error:
        raise ConfigError(
            f"attention_backend: {named} cannot serve {loaded.name}: {error}; give auto."
        ) from error
    # Engines may share a model, one after the other.
    loaded.attend = paged_attention if choice.is_ours else choice.attend
    shown = " ".join(f"{place.replace(' ', ':')}={name}" for place, name in choice.names.items())
    logger.info("attention model=%s %s", loaded.name, shown)
    return choice.names
