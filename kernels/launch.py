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


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether kernels over a tensor's device may start before the one in front has ended."""
    return tensor.is_cuda and _can_overlap(tensor.device)


def overlap_options(tensor: torch.Tensor) -> dict[str, Any]:
    """Give the options of a Triton launch; its kernel has a constant `OVERLAPS`."""
    is_possible = overlaps(tensor)
    return {"OVERLAPS": is_possible, **({"launch_pdl": True} if is_possible else {})}


@lru_cache
def _can_overlap(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9
