"""Paged attention as an 8B Llama, a Gemma and a gpt-oss would have it compiled."""

from __future__ import annotations

from kernels.paged_attention_kernels import attend_rows, attend_shares
from kernels.paged_attention_shares import merge_shares
from kernels.paged_attention_triton import TileSizes, row_sizes, share_sizes
from tests.kernels.hopper import HopperCase

POINTERS = ("output", "query", "key_cache", "value_cache")
PARTIALS = ("partial_outputs", "partial_maxima", "partial_totals")
INDICES = ("block_tables", "table_rows", "cu_seqlens_q", "seq_lens", "counters")
COUNTS = ("num_requests", "num_programs", "max_rows", "table_stride", "query_stride")


def signature(kernel: object, dtype: str) -> dict[str, str]:
    kinds = {
        **dict.fromkeys((*POINTERS, "sinks"), f"*{dtype}"),
        **dict.fromkeys(PARTIALS, "*fp32"),
        **dict.fromkeys(INDICES, "*i32"),
        **dict.fromkeys((*COUNTS, "query_head_stride"), "i32"),
        "tree_masks": "*i64",
        "factor": "fp32",
        "cap": "fp32",
    }
    return {name: kinds[name] for name in kernel.arg_names if name in kinds}


def attend_case(
    kernel: object,
    sizes: TileSizes,
    *,
    dtype: str = "bf16",
    head_dim: int = 128,
    block_d: int = 128,
    kv_heads: int = 8,
    group: int = 4,
    window: int = 0,
    tree: bool = False,
    softcap: bool = False,
    sinks: bool = False,
    requests: int = 64,
    merges: tuple[int, int] = (1, 0),
) -> HopperCase:
    constants = {
        "SINKS": sinks, "TREE": tree, "WINDOW": window, "SOFTCAP": softcap,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        "KV_HEADS": kv_heads, "GROUP": group, "BLOCK_SIZE": 16,
        "HEAD_DIM": head_dim, "VALUE_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_DV": block_d,
        "BLOCK_M": sizes.block_m, "BLOCK_N": sizes.block_n,
        "BLOCK_REQUESTS": requests, "HAS_TABLE_ROWS": True, "OVERLAPS": True,
    }  # fmt: skip
    if kernel is attend_shares:
        constants |= {"MERGE_ENTRIES": merges[0], "MERGE_PARTS": merges[1]}
    names = signature(kernel, dtype)
    strides = ("query_stride", "query_head_stride")
    pointers = tuple(name for name, kind in names.items() if kind.startswith("*"))
    return HopperCase(
        kernel, names, constants, pointers + strides, sizes.num_warps, sizes.num_stages,
        {"launch_pdl": True},
    )  # fmt: skip


def merge_case(heads: int, num_warps: int, requests: int = 64) -> HopperCase:
    constants = {
        "SINKS": True, "WINDOW": 0, "KV_HEADS": 8, "GROUP": 4, "VALUE_DIM": 128,
        "BLOCK_DV": 128, "HEADS": heads, "BLOCK_HEADS": heads, "BLOCK_N": 64,
        "BLOCK_REQUESTS": requests, "BLOCK_PARTS": num_warps * 8 // heads, "OVERLAPS": True,
    }  # fmt: skip
    names = signature(merge_shares, "bf16")
    return HopperCase(merge_shares, names, constants, (*PARTIALS, "output"), num_warps)


GEMMA = {"head_dim": 256, "block_d": 256, "group": 2}
GPT_OSS = {"head_dim": 64, "block_d": 64, "group": 8, "sinks": True}
CASES = [
    attend_case(attend_shares, share_sizes(4, 256, 2), requests=1, merges=(4, 32)),
    attend_case(attend_shares, share_sizes(4, 256, 2), merges=(4, 16)),
    attend_case(attend_shares, share_sizes(4 * 4, 256, 2), requests=1),
    attend_case(attend_shares, share_sizes(8 * 4, 256, 2), merges=(16, 4)),
    attend_case(attend_shares, share_sizes(9 * 4, 256, 2), requests=1),
    attend_case(attend_shares, share_sizes(9 * 4, 256, 2), merges=(16, 4)),
    attend_case(attend_shares, share_sizes(9 * 4, 256, 2), tree=True),
    attend_case(attend_shares, share_sizes(9 * 8, 256, 2), group=8, window=4096),
    attend_case(attend_shares, share_sizes(8, 128, 2), **GPT_OSS, window=128),
    attend_case(attend_shares, share_sizes(2, 512, 2), **GEMMA, softcap=True),
    attend_case(attend_shares, share_sizes(5, 256, 2), head_dim=80, kv_heads=32, group=1),
    attend_case(attend_shares, share_sizes(4, 256, 4), dtype="fp32"),
    attend_case(attend_rows, row_sizes(4, 256, 2)),
    attend_case(attend_rows, row_sizes(4, 256, 2), tree=True),
    attend_case(attend_rows, row_sizes(4, 256, 2), window=4096),
    attend_case(attend_rows, row_sizes(2, 512, 2), **GEMMA, softcap=True),
    attend_case(attend_rows, row_sizes(8, 128, 2), **GPT_OSS),
    attend_case(attend_rows, row_sizes(4, 256, 4), dtype="fp32"),
    merge_case(4, 4),
    merge_case(1, 8),
    merge_case(1, 8, requests=1),
]
