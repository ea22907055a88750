"""Linear layers of Llama-3.1-8B for few rows, in every configuration that may run."""

from __future__ import annotations

from kernels.skinny_config import CANDIDATES, SkinnyConfig, candidates, choose_config
from kernels.skinny_linear_triton import dot_kernel, reduce_kernel, vector_kernel
from tests.kernels.hopper import HopperCase

LAYERS = [(6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]


def case(config: SkinnyConfig, rows: int, depth: int, dtype: str = "bf16") -> HopperCase:
    """A kernel for so many (padded) rows and such a depth."""
    if config.kind == "vector":
        return vector_case(config, depth, dtype)
    part = -(-depth // (config.split_k * config.block_k)) * config.block_k
    pointers = dict.fromkeys(("x", "weight", "bias"), f"*{dtype}")
    output = "*fp32" if config.split_k > 1 else f"*{dtype}"
    integers = dict.fromkeys(("num_rows", "num_columns", "x_stride", "weight_stride"), "i32")
    return HopperCase(
        kernel=dot_kernel,
        signature={**pointers, "output": output, **integers},
        constants={
            "DEPTH": depth,
            "PART": part,
            "ROWS": max(16, rows),
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "IS_EVEN": part * config.split_k == depth,
            "HAS_BIAS": False,
            "STAGES": config.num_stages,
        },
        aligned=(*pointers, "output", "num_columns", "x_stride", "weight_stride"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def vector_case(config: SkinnyConfig, depth: int, dtype: str) -> HopperCase:
    """The kernel for one row."""
    pointers = dict.fromkeys(("x", "weight", "bias", "output"), f"*{dtype}")
    integers = dict.fromkeys(("num_columns", "depth", "weight_stride"), "i32")
    return HopperCase(
        kernel=vector_kernel,
        signature={**pointers, **integers},
        constants={
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "IS_EVEN": depth % config.block_k == 0,
            "HAS_BIAS": False,
            "OVERLAPS": True,
        },
        aligned=(*pointers, *integers),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        options={"launch_pdl": True},
    )


def chosen() -> list[HopperCase]:
    """What the choice gives for every layer, each specialisation once."""
    keys = {
        (choose_config(rows, *layer), rows, layer[1])
        for layer in LAYERS
        for rows in (1, 16, 32, 64)
    }
    return [case(*key) for key in sorted(keys, key=str)]


def most_rows(config: SkinnyConfig) -> int:
    """With how many rows a candidate needs most."""
    return max(rows for rows in (1, 16, 32, 64) if config in candidates(rows))


CASES = [
    *chosen(),
    *(case(config, most_rows(config), 4096) for config in CANDIDATES),
    case(choose_config(16, 4096, 4000), 16, 4000, "fp16"),
    HopperCase(
        kernel=reduce_kernel,
        signature={
            "partials": "*fp32",
            "bias": "*bf16",
            "output": "*bf16",
            "size": "i32",
            "num_columns": "i32",
        },
        constants={"SPLIT": 4, "HAS_BIAS": True, "BLOCK": 256},
        aligned=("partials", "bias", "output", "num_columns"),
        num_warps=2,
    ),
]
