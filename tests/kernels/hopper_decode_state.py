"""The operations over the state of a decode loop, for some drafts and all options."""

from __future__ import annotations

from typing import Any

from kernels.decode_state_triton import commit_kernel, place_drafts_kernel, prepare_rows_kernel
from kernels.synthetic_limits_triton import synthetic_limits_kernel
from tests.kernels.hopper import HopperCase

INT64 = (
    "num_tokens",
    "last_token",
    "prev_token",
    "draft_tokens",
    "token_ids",
    "positions",
    "slot_mapping",
    "sampled",
    "packed",
    "seeds",
    "choices",
)
TYPES = {
    **dict.fromkeys(INT64, "*i64"),
    "is_invalid": "*i1",
    "output_counts": "*fp32",
    "rates": "*fp64",
    **dict.fromkeys(
        ("num_rows", "last_token_id", "scratch_slot", "counts_stride", "num_rates"), "i32"
    ),
}


def case(kernel: Any, constants: dict[str, Any], num_warps: int) -> HopperCase:
    """All arguments that no table knows are pointers to int32."""
    names = [name for name in kernel.arg_names if name not in constants]
    # The number of requests is an argument of its own in some kernels.
    types = {name: TYPES.get(name, "*i32") for name in names} | (
        {"num_requests": "i32"} if "num_requests" in names else {}
    )
    pointers = tuple(name for name, kind in types.items() if kind.startswith("*"))
    return HopperCase(kernel, types, constants, aligned=pointers, num_warps=num_warps)


CASES = [
    *(
        case(
            prepare_rows_kernel,
            {
                "IS_BOUNDED": is_bounded,
                "MAX_DRAFTS": 5,
                "MAX_BLOCKS": 513,
                "BLOCK_SIZE": 16,
                "BLOCK": 64,
            },
            num_warps=2,
        )
        for is_bounded in (False, True)
    ),
    case(place_drafts_kernel, {"MAX_DRAFTS": 5, "BLOCK": 64}, num_warps=2),
    *(
        case(
            commit_kernel,
            {
                "HAS_LIMITS": has_limits,
                "HAS_COUNTS": has_counts,
                "MAX_DRAFTS": max_drafts,
                "NUM_COLUMNS": max_drafts + 3,
                "BLOCK": block,
            },
            num_warps=1,
        )
        for has_limits, has_counts, max_drafts, block in [
            (False, False, 5, 8),
            (False, True, 16, 32),
            (True, True, 1, 4),
        ]
    ),
    case(synthetic_limits_kernel, {"BLOCK": 8}, num_warps=1),
]
