"""What the device can do at most: bytes moved and operations done, measured, not looked up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.device_times import time_calls
from benchmarks.gpu.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of one device.

    Attributes:
        copy_bytes_per_s: of a large copy on the device, bytes read and bytes written.
        read_bytes_per_s: of a large sum.
        flops_per_s: of a large matrix product in the models' dtype, on random data.
    """

    copy_bytes_per_s: float
    read_bytes_per_s: float
    flops_per_s: float


def measure_ceilings(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure them."""
    repeats = max(3, sizes.repeats // 3)
    source = torch.randn(sizes.ceiling_bytes // 4, device=device)
    goal = torch.empty_like(source)
    # By a kernel: a graph would make a copy of its own kind out of `copy_`, which is slower.
    copy = time_calls([partial(torch.neg, source, out=goal)], device, repeats=repeats)
    read = time_calls([source.sum], device, repeats=repeats)
    del goal
    rows = sizes.ceiling_rows
    left, right = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    matmul = time_calls([lambda: torch.matmul(left, right, out=product)], device, repeats=repeats)
    size = source.numel() * 4
    return Ceilings(2 * size / copy.seconds, size / read.seconds, 2 * rows**3 / matmul.seconds)
