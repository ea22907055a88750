"""Sampling as servers of 8B models need it: plain, and with everything that can change a row."""

from __future__ import annotations

from typing import Any

from kernels.gumbel_limits_triton import gather_kernel, narrow_kernel
from kernels.gumbel_noise_triton import noise_kernel
from kernels.gumbel_scores_triton import merge_kernel, peak_kernel, rank_kernel
from kernels.gumbel_search_triton import limit_kernel
from tests.kernels.hopper import HopperCase

TYPES = {
    **dict.fromkeys(("vocab_size", "logits_stride", "num_rows"), "i32"),
    **dict.fromkeys(("slots", "offsets", "top_ks", "choices", "index", "num_near"), "*i32"),
    **dict.fromkeys(("bias_row", "mask_row", "penalty_row", "bitmask"), "*i32"),
    **dict.fromkeys(("bias_stride", "mask_stride", "prompt_stride", "counts_stride"), "i32"),
    **dict.fromkeys(("num_tokens", "seeds", "draft_token_ids", "token_ids", "ranks"), "*i64"),
    **dict.fromkeys(("repetition_excess", "presence", "frequency", "in_prompt"), "*fp32"),
    **dict.fromkeys(("biases", "output_counts", "temperatures", "min_ps", "near"), "*fp32"),
    **dict.fromkeys(("best", "second", "greedy_best", "raw_best", "raw_sum"), "*fp32"),
    **dict.fromkeys(("group_best", "limits", "logprobs", "margins", "brackets"), "*fp32"),
    **dict.fromkeys(("top_ps", "pivot_mass", "mass"), "*fp64"),
    "draft_stride": "i32",
    "is_invalid": "*i1",
}
CHANGES = (
    "bias_row", "biases", "mask_row", "bitmask", "penalty_row", "repetition_excess", "presence",
    "frequency", "in_prompt", "output_counts", "draft_token_ids",
)  # fmt: skip
PLAIN = dict.fromkeys(CHANGES)
# What one block of a row, and one row's search, are cut into.
SIZES = {
    "SPLITS": 8, "CHUNK": 16384, "BLOCK": 1024, "NUM_GROUPS": 1024, "CAPACITY": 8192, "FEW": 4096,
    "ROUND": 2, "HAS_NOISE": True, "NUM_BLOCKS": 32,
}  # fmt: skip
FEW_ROWS = {"SPLITS": 128, "CHUNK": 1024}
UNALIGNED = ("draft_stride", "mask_stride", "num_rows")


def case(kernel: Any, dtype: str, absent: dict[str, Any], num_warps: int = 4) -> HopperCase:
    """One kernel on logits of one dtype; `absent` arguments are None, or constants."""
    constants = {name: v for name, v in {**SIZES, **absent}.items() if name in kernel.arg_names}
    types = {"logits": f"*{dtype}", **TYPES}
    signature = {name: types[name] for name in kernel.arg_names if name not in constants}
    return HopperCase(
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=tuple(name for name in signature if name not in UNALIGNED),
        num_warps=num_warps,
        options={"enable_fp_fusion": False},
    )


def pass_of(dtype: str, absent: dict[str, Any], flag: bool) -> list[HopperCase]:
    """The kernels of one call, with or without log probabilities and margins."""
    flags = {**absent, "WITH_LOGPROBS": flag, "WITH_MARGINS": flag}
    return [
        case(peak_kernel, dtype, flags),
        case(narrow_kernel, dtype, {**flags, "ROUND": 0}, 8),
        case(narrow_kernel, dtype, flags, 8),
        case(gather_kernel, dtype, flags, 8),
        case(noise_kernel, dtype, flags),
        case(limit_kernel, dtype, {**flags, "BLOCK": 4096}, 16),
        case(merge_kernel, dtype, flags, 1),
        case(rank_kernel, dtype, flags),
    ]


CASES = [
    *pass_of("bf16", {}, True),
    *pass_of("fp32", PLAIN, False),
    case(peak_kernel, "bf16", {**PLAIN, "WITH_LOGPROBS": False, "group_best": None}),
    case(peak_kernel, "bf16", {**PLAIN, "WITH_LOGPROBS": False, **FEW_ROWS}),
    case(narrow_kernel, "bf16", {**PLAIN, **FEW_ROWS}, 8),
    case(gather_kernel, "bf16", {**PLAIN, **FEW_ROWS}, 8),
    case(
        noise_kernel,
        "bf16",
        {**PLAIN, "WITH_MARGINS": False, "limits": None, **FEW_ROWS},
    ),
    case(
        merge_kernel,
        "bf16",
        {**dict.fromkeys(("ranks", "logprobs", "margins")), **FEW_ROWS},
    ),
]
