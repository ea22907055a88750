"""Builds a model where it will run, in the dtype it will have, its weights still to be written."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from engine.model.attention import PAGED_ATTENTION


def empty_model(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a causal language model; its buffers are right, and tied weights are one.

    Args:
        config: its configuration; its dtype is set.
        dtype: of its weights.
        device: where they are.
        trust_remote_code: run Python code that comes with the configuration.

    Raises:
        torch.OutOfMemoryError: they do not fit on the device.
        ValueError: transformers cannot build the model.
    """
    with device, no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=PAGED_ATTENTION,
            trust_remote_code=trust_remote_code,
        )
    # no_init_weights() leaves this out, too.
    model.tie_weights()
    return model


def config_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """Give the dtype that a configuration names, or None."""
    named = config.dtype or config.get_text_config(decoder=True).dtype
    return named if isinstance(named, torch.dtype) else None
