"""Writes of keys and values as models of 1B to 8B parameters need them."""

from __future__ import annotations

from kernels.kv_cache_write_triton import kv_cache_write_kernel
from tests.kernels.hopper import HopperCase

TENSORS = ("key", "value", "key_cache", "value_cache")
STRIDES = ("key_token_stride", "key_head_stride", "value_token_stride", "value_head_stride")


def case(dtype: str, heads: int, dim: int) -> HopperCase:
    """A cache of one dtype with so many heads."""
    return HopperCase(
        kernel=kv_cache_write_kernel,
        signature={
            **dict.fromkeys(TENSORS, f"*{dtype}"),
            "slot_mapping": "*i64",
            **dict.fromkeys(STRIDES, "i32"),
        },
        constants={
            "NUM_HEADS": heads,
            "HEAD_DIM": dim,
            "VALUE_DIM": dim,
            "BLOCK": 1024,
            "OVERLAPS": True,
        },
        aligned=(*TENSORS, "slot_mapping", *STRIDES),
        options={"launch_pdl": True},
    )


CASES = [case("bf16", 8, 128), case("fp16", 8, 64), case("fp32", 32, 96)]
