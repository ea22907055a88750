"""Chooses how a mixture of experts multiplies, among what transformers offers for all families.

Measured by what the host must know: `eager` loops over the experts that were hit, and the host asks
the device which; `batched_mm` copies a matrix for every pair of token and expert, gigabytes for a
prompt; `grouped_mm` reads each expert's weights once, and in bfloat16 on devices of compute
capability 9 or 10 the device alone knows the groups. Elsewhere torch's `_grouped_mm_fallback` reads
their bounds on the host, so that a CUDA graph cannot hold such a pass.
"""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_EXPERTS = "grouped_mm"
_CAPABILITIES_WITHOUT_SYNC = (9, 10)


def choose_experts(model: PreTrainedModel) -> None:
    """Make the experts of a model on CUDA multiply without the host, as far as they can.

    Models without experts, or with experts that do not follow transformers' interface, are left
    as they are.
    """
    if model.device.type != "cuda" or not model._can_set_experts_implementation():
        return
    model.set_experts_implementation(_EXPERTS)
    if not multiplies_without_host(model.dtype, torch.cuda.get_device_capability(model.device)):
        logger.warning(
            "experts=%s model=%s dtype=%s reason=only bfloat16 on compute capability 9 and 10 "
            "spares the host, so no CUDA graph holds this model's passes",
            _EXPERTS,
            type(model).__name__,
            model.dtype,
        )


def multiplies_without_host(dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """Whether torch's grouped product of this dtype leaves the host out on such a device."""
    return dtype == torch.bfloat16 and capability[0] in _CAPABILITIES_WITHOUT_SYNC
