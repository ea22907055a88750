"""Builds a model with random weights where it will run, in the dtype it will have.

Nothing is initialised elsewhere and moved: a model of 16 GB takes as long as its device takes to
write 16 GB. It knows nothing of architectures: what is not a matrix (norms, sinks) is what the
model's own initialisation says, which differs between families, and biases are zero.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from engine.model.empty_model import config_dtype, empty_model

_DEFAULT_STD = 0.02


def random_model(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Build a causal language model, the same for the same seed, device type and versions.

    Matrices are normal with the standard deviation that the configuration trains from (0.02 where
    it says none), small enough that activations and logits stay finite in every dtype.

    Args:
        config: its configuration; its dtype is set.
        dtype: of its weights; `auto` = the configuration's own, float32 where it names none.
        device: where they are made.
        trust_remote_code: run Python code that comes with the configuration.
        seed: of the weights.

    Raises:
        torch.OutOfMemoryError: they do not fit on the device.
        ValueError: transformers cannot build the model.
    """
    exact = dtype if isinstance(dtype, torch.dtype) else config_dtype(config) or torch.float32
    model = empty_model(config, dtype=exact, device=device, trust_remote_code=trust_remote_code)
    # The model's own initialisation draws from the global generators, so these are seeded.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        _fill(model)
    return model


@torch.no_grad()
def _fill(model: PreTrainedModel) -> None:
    text_config = model.config.get_text_config(decoder=True)
    std = getattr(text_config, "initializer_range", None) or _DEFAULT_STD
    filled: set[int] = set()
    for module in model.modules():
        own = [weight for weight in module.parameters(recurse=False) if id(weight) not in filled]
        filled |= {id(weight) for weight in own}
        if own and all(weight.ndim < 2 for weight in own):
            model._init_weights(module)
            continue
        for weight in own:
            if weight.ndim < 2:
                weight.zero_()
            else:
                weight.normal_(std=std)
