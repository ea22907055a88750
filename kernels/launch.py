"""How kernels that follow closely upon each other are launched; nothing of what they do.

With programmatic dependent launch (CUDA, compute capability 9 and later) a kernel's programs may
start while those of the kernel before it are still ending. Until they call `gdc_wait` they may read
only what no earlier kernel of the stream has just written, such as weights. The kernel after it is
let in by `gdc_launch_dependents`, which comes behind the wait: so whoever runs knows that all but
the kernel right before it have ended.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


class Overlap:
    """Whether kernels of this process may overlap; set before the first of them is launched."""

    is_wanted = False


def overlap_options(tensor: torch.Tensor) -> dict[str, Any]:
    """Give the options of a Triton launch over a tensor; its kernel has a constant `OVERLAPS`."""
    overlaps = Overlap.is_wanted and tensor.is_cuda and can_overlap(tensor.device)
    return {"OVERLAPS": overlaps, **({"launch_pdl": True} if overlaps else {})}


@lru_cache
def can_overlap(device: torch.device) -> bool:
    """Whether a CUDA device can run kernels that overlap."""
    return torch.cuda.get_device_capability(device)[0] >= 9
