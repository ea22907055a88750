"""Normalisation and gates at the sizes of models of 1B to 8B parameters."""

from __future__ import annotations

from kernels.rms_norm_triton import rms_norm_kernel
from kernels.silu_mul_triton import silu_mul_kernel
from tests.kernels.hopper import HopperCase

ROWS = ("hidden", "residual", "weight", "normed", "added")
GATES = ("gate", "up", "output")
STRIDES = ("gate_stride", "up_stride", "size")


def norm(size: int, block: int, has_residual: bool, is_gemma: bool) -> HopperCase:
    """Rows of so many numbers."""
    return HopperCase(
        kernel=rms_norm_kernel,
        signature={**dict.fromkeys(ROWS, "*bf16"), "epsilon": "fp32"},
        constants={
            "SIZE": size,
            "BLOCK": block,
            "HAS_RESIDUAL": has_residual,
            "IS_GEMMA": is_gemma,
        },
        aligned=ROWS,
        num_warps=min(16, block // 512),
    )


CASES = [
    norm(4096, 4096, True, False),
    norm(2048, 2048, False, False),
    norm(2304, 4096, True, True),
    norm(16384, 16384, True, False),
    HopperCase(
        kernel=silu_mul_kernel,
        signature={**dict.fromkeys(GATES, "*bf16"), **dict.fromkeys(STRIDES, "i32")},
        constants={"BLOCK": 1024},
        aligned=(*GATES, *STRIDES),
    ),
]
