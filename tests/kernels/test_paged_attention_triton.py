"""The Triton kernels of paged attention, and their twin in torch, against the reference.

Without a GPU, Triton's interpreter runs them. Caches are NaN where nobody's keys are, and memory
is NaN before it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kernels.paged_attention import PagedLayout, paged_attention
from kernels.paged_attention_over_layout import paged_attention_over_layout
from tests.kernels.paged_cases import SCALING, PagedCase, Shape, make_paged_case, random_trees

pytest.importorskip("triton")

from kernels import paged_attention_triton
from kernels.paged_attention_triton import TileSizes, paged_attention_on_device

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A GPU's exp2 is approximate.
ATOL, RTOL = (1e-5, 1e-4) if DEVICE == "cuda" else (2e-6, 2e-5)
TOLERANCES = [
    pytest.param((torch.float16, 4e-3, 4e-3), id="float16"),
    pytest.param(
        (torch.bfloat16, 2e-2, 2e-2),
        id="bfloat16",
        marks=pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter multiplies its bits"),
    ),
]
FEW_ROWS = {
    "one_row": [(1, 1)],
    "decode_one": [(1, 37)],
    "verify_batch": [(5, 12), (5, 31), (5, 5)],
    "block_edges": [(1, 4), (2, 8), (3, 9), (1, 16), (1, 17), (1, 32)],
    "length_classes": [(1, 5), (2, 130), (1, 70), (3, 9)],
    "request_without_rows": [(0, 6), (2, 6), (0, 1), (1, 20), (0, 9)],
}
MANY_ROWS = {
    "mixed_batch": [(1, 30), (5, 33), (70, 90), (0, 3), (1, 1)],
    "whole_prompt": [(100, 100), (1, 7)],
}
EXTRAS = {
    "plain": {},
    "window": {"sliding_window": 6},
    "window_of_one": {"sliding_window": 1},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "window_softcap_sinks": {"sliding_window": 7, "softcap": 2.0, "sinks": True},
}
Attend = Callable[..., torch.Tensor]


def poisoned_kernels(*inputs: object, **extras: object) -> torch.Tensor:
    """Run the kernels while torch fills what it allocates without a value with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1, device=DEVICE).isnan().all()
        return paged_attention_on_device(*inputs, **extras)
    finally:
        torch.use_deterministic_algorithms(False)


WAYS = {"kernels": poisoned_kernels, "torch": paged_attention_over_layout}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut keys into pieces of 16, so that short requests have many."""

    def share_sizes(num_entries: int, dims: int, element_bytes: int) -> TileSizes:
        sizes = original(num_entries, dims, element_bytes)
        return replace(sizes, block_n=16)

    original = paged_attention_triton.share_sizes
    monkeypatch.setattr(paged_attention_triton, "share_sizes", share_sizes)


def with_sinks(extras: dict[str, object], num_heads: int = 4) -> dict[str, object]:
    if "sinks" not in extras:
        return extras
    return {**extras, "sinks": torch.linspace(-1.0, 2.0, num_heads, device=DEVICE)}


def check(
    attend: Attend, case: PagedCase, atol: float = ATOL, rtol: float = RTOL, **extras: object
) -> None:
    output = attend(*case.inputs, scaling=SCALING, **extras)
    assert output.dtype == case.query.dtype
    own = output[: case.num_rows].double().cpu()
    torch.testing.assert_close(own, case.reference(**extras), atol=atol, rtol=rtol)


@pytest.mark.parametrize("batch", FEW_ROWS.values(), ids=FEW_ROWS.keys())
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.usefixtures("small_pieces")
def test_few_rows_equal_reference(batch: list[tuple[int, int]], extras: dict[str, object]) -> None:
    check(poisoned_kernels, make_paged_case(batch, device=DEVICE), **with_sinks(extras))


@pytest.mark.parametrize("batch", MANY_ROWS.values(), ids=MANY_ROWS.keys())
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_many_rows_equal_reference(batch: list[tuple[int, int]], extras: dict[str, object]) -> None:
    check(poisoned_kernels, make_paged_case(batch, device=DEVICE), **with_sinks(extras))


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("extras", ["plain", "window_softcap_sinks"])
@pytest.mark.parametrize("batch", [FEW_ROWS["length_classes"], MANY_ROWS["mixed_batch"]])
def test_precisions(
    batch: list[tuple[int, int]], extras: str, tolerance: tuple[torch.dtype, float, float]
) -> None:
    dtype, atol, rtol = tolerance
    case = make_paged_case(batch, dtype=dtype, device=DEVICE)
    check(poisoned_kernels, case, atol, rtol, **with_sinks(EXTRAS[extras]))


@pytest.mark.parametrize("batch", [*FEW_ROWS.values(), *MANY_ROWS.values()])
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_the_twin_equals_reference(batch: list[tuple[int, int]], extras: dict[str, object]) -> None:
    case = make_paged_case(batch, device=DEVICE, num_padding_rows=2)
    check(paged_attention_over_layout, case, **with_sinks(extras))


@pytest.mark.parametrize("num_programs", [1, 2, 5, 64])
@pytest.mark.parametrize(
    ("window", "many_merges", "bytes_in_place"), [(None, 1, 0), (20, 512, 0), (20, 1, 2**20)]
)
@pytest.mark.usefixtures("small_pieces")
def test_shares_may_end_anywhere(
    num_programs: int,
    window: int | None,
    many_merges: int,
    bytes_in_place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One program computes all, requests lie in several shares, or shares are left over."""
    monkeypatch.setattr(paged_attention_triton, "MANY_MERGES", many_merges)
    monkeypatch.setattr(paged_attention_triton, "MOST_BYTES_IN_PLACE", bytes_in_place)
    monkeypatch.setattr(
        paged_attention_triton, "num_programs_at_once", lambda device, sizes: num_programs
    )
    case = make_paged_case([(1, 90), (2, 3), (0, 50), (3, 100), (1, 16)], device=DEVICE)
    check(poisoned_kernels, case, sliding_window=window, **with_sinks({"sinks": True}))


@pytest.mark.parametrize("bytes_in_place", [0, 2**20])
@pytest.mark.parametrize("batch", [[(1, 150)], [(9, 150)], [(2, 70), (5, 90)]], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_calls_leave_nothing_to_the_next(
    batch: list[tuple[int, int]], bytes_in_place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_attention_triton, "MOST_BYTES_IN_PLACE", bytes_in_place)
    case = make_paged_case(batch, device=DEVICE)
    first = poisoned_kernels(*case.inputs, scaling=SCALING)
    check(poisoned_kernels, make_paged_case([(2, 40), (1, 100)], device=DEVICE))
    assert torch.equal(poisoned_kernels(*case.inputs, scaling=SCALING), first)
    check(poisoned_kernels, case)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(
    "batch", [[(1, 40)], [(1, 40), (3, 33), (0, 7)], [(60, 75), (1, 9)]], ids=str
)
def test_requests_may_have_any_rows_of_the_tables(
    batch: list[tuple[int, int]], way: Attend
) -> None:
    case = make_paged_case(batch, device=DEVICE)
    tables = case.layout.block_tables
    rows = torch.arange(len(batch), device=DEVICE, dtype=torch.int32).flip(0) * 2 + 1
    spread = torch.full((2 * len(batch) + 1, tables.shape[1]), -(2**30), dtype=torch.int32)
    spread = spread.to(DEVICE).index_copy(0, rows.long(), tables)
    expected = way(*case.inputs, scaling=SCALING)
    output = way(*case.with_layout(block_tables=spread, table_rows=rows).inputs, scaling=SCALING)
    torch.testing.assert_close(output[: case.num_rows], expected[: case.num_rows], atol=0, rtol=0)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("batch", [[(1, 40), (3, 33)], [(60, 75), (1, 9)]], ids=["few", "many"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(num_heads=3, kv_heads=3),
        Shape(num_heads=8, kv_heads=1),
        Shape(num_heads=14, kv_heads=2),
        Shape(head_dim=80, value_dim=80),
        Shape(head_dim=24, value_dim=40),
        Shape(block_size=1),
        Shape(block_size=7),
        Shape(block_size=32),
    ],
    ids=str,
)
def test_any_shape(shape: Shape, batch: list[tuple[int, int]], way: Attend) -> None:
    check(way, make_paged_case(batch, shape, device=DEVICE))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("extras", [{}, {"sliding_window": 9}, {"sliding_window": 40}], ids=str)
@pytest.mark.parametrize(
    "batch", [[(7, 50), (1, 20), (12, 12)], [(63, 80), (5, 40)]], ids=["few", "many"]
)
@pytest.mark.usefixtures("small_pieces")
def test_rows_of_a_tree_see_their_own_branch(
    batch: list[tuple[int, int]], extras: dict[str, object], way: Attend
) -> None:
    case = make_paged_case(batch, Shape(num_heads=6), device=DEVICE, num_padding_rows=1)
    case = case.with_layout(tree_masks=random_trees(case))
    check(way, case, **extras)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_chain_of_rows_is_a_tree(way: Attend) -> None:
    case = make_paged_case([(4, 20), (1, 5)], device=DEVICE)
    chain = torch.tensor([1, 3, 7, 15, 1], device=DEVICE)
    outputs = [
        way(*own.inputs, scaling=SCALING, sliding_window=6)
        for own in (case, case.with_layout(tree_masks=chain))
    ]
    torch.testing.assert_close(*outputs, atol=ATOL, rtol=RTOL)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("max_query_len", [8, 100], ids=["few", "many"])
def test_bounds_may_be_generous(max_query_len: int, way: Attend) -> None:
    """As in a graph: room for longer requests and more rows, and requests that are not there."""
    batch = [(2, 40), (1, 3), (0, 0), (0, 0)]
    case = make_paged_case(batch, device=DEVICE, num_padding_rows=5)
    check(way, case.with_layout(max_query_len=max_query_len, max_seq_len=131072))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("rows", [2, 80], ids=["few", "many"])
def test_rows_without_keys_do_no_harm(rows: int, way: Attend) -> None:
    case = make_paged_case([(1, 9), (rows, 0), (3, 20)], device=DEVICE)
    output = way(*case.inputs, scaling=SCALING).double().cpu()
    alone = make_paged_case([(1, 9), (rows, rows), (3, 20)], device=DEVICE)
    assert output.shape == alone.query.shape
    first, last = output[:1], output[-3:]
    own = case.with_layout(
        cu_seqlens_q=torch.tensor([0, 1, 1, 4], dtype=torch.int32, device=DEVICE), num_tokens=4
    )
    own.query = torch.cat([case.query[:1], case.query[-3:]])
    own.batch = [(1, 9), (0, 0), (3, 20)]
    torch.testing.assert_close(torch.cat([first, last]), own.reference(), atol=ATOL, rtol=RTOL)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("num_padding_rows", [0, 3])
def test_empty_batch_gives_padding_alone(num_padding_rows: int, way: Attend) -> None:
    case = make_paged_case([], device=DEVICE, num_padding_rows=num_padding_rows)
    assert way(*case.inputs, scaling=SCALING).shape == (num_padding_rows, 4, 16)


def test_another_requests_nan_stays_its_own() -> None:
    case = make_paged_case([(1, 3), (1, 40), (1, 17)], device=DEVICE)
    expected = paged_attention_on_device(*case.inputs, scaling=SCALING)
    case.value_cache[case.layout.block_tables[1, 0]] = float("nan")
    output = paged_attention_on_device(*case.inputs, scaling=SCALING)
    assert output[1].isnan().all()
    torch.testing.assert_close(output[[0, 2]], expected[[0, 2]])


def test_paged_attention_takes_a_layout() -> None:
    check(paged_attention, make_paged_case([(1, 9), (4, 20), (70, 70)], device=DEVICE))


def test_refuses_trees_of_more_rows_than_bits() -> None:
    case = make_paged_case([(64, 64)], device=DEVICE)
    case = case.with_layout(tree_masks=torch.ones(64, dtype=torch.int64, device=DEVICE))
    with pytest.raises(ValueError, match="64 rows per request; a tree mask has 63 bits"):
        paged_attention(*case.inputs, scaling=SCALING)


LLAMA_8B = Shape(num_heads=32, kv_heads=8, head_dim=128, value_dim=128, block_size=16)


def error_of(output: torch.Tensor, case: PagedCase, **extras: object) -> float:
    """Give the norm of the error by that of the exact result, in float32."""
    exact = paged_attention_over_layout(
        case.query.float(), case.key_cache.float(), case.value_cache.float(), case.layout,
        scaling=LLAMA_8B.head_dim**-0.5, **extras,
    )[: case.num_rows]  # fmt: skip
    return float((output[: case.num_rows].float() - exact).norm() / exact.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 5, 16, 64])
@pytest.mark.parametrize("rows", [1, 5, 9, 17])
@pytest.mark.parametrize("extras", [{}, {"sliding_window": 1024, "sinks": True}], ids=str)
def test_long_contexts_on_a_gpu(batch_size: int, rows: int, extras: dict[str, object]) -> None:
    batch = [(rows, 8192 - 37 * index) for index in range(batch_size)]
    case = make_paged_case(batch, LLAMA_8B, torch.bfloat16, "cuda")
    own = with_sinks(extras, 32)
    output = paged_attention_on_device(*case.inputs, scaling=128**-0.5, **own)
    assert error_of(output, case, **own) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(
    "extras", [{}, {"sliding_window": 100}, {"softcap": 30.0, "sinks": True}], ids=str
)
def test_a_mixed_batch_on_a_gpu(extras: dict[str, object]) -> None:
    batch = [(1, 2048), (512, 1500), (9, 777), (300, 300), (1, 1)]
    case = make_paged_case(batch, LLAMA_8B, torch.bfloat16, "cuda", num_padding_rows=9)
    own = with_sinks(extras, 32)
    output = paged_attention_on_device(*case.inputs, scaling=128**-0.5, **own)
    assert error_of(output, case, **own) < 1e-2


@pytest.mark.gpu
def test_a_tree_on_a_gpu() -> None:
    case = make_paged_case([(24, 4096), (16, 700)], LLAMA_8B, torch.bfloat16, "cuda")
    case = case.with_layout(tree_masks=random_trees(case))
    output = paged_attention_on_device(*case.inputs, scaling=128**-0.5)
    assert error_of(output, case) < 1e-2


@pytest.mark.gpu
def test_caches_of_more_than_2_to_the_31_elements() -> None:
    case = make_paged_case(
        [(2, 100), (1, 40)], LLAMA_8B, torch.bfloat16, "cuda", first_block=2**31 // (16 * 8 * 128)
    )
    assert case.key_cache.numel() > 2**31
    output = paged_attention_on_device(*case.inputs, scaling=128**-0.5)
    slim = make_paged_case([(2, 100), (1, 40)], LLAMA_8B, torch.bfloat16, "cuda")
    assert error_of(output, slim) < 1e-2


@pytest.mark.gpu
def test_a_graph_replays_over_other_lengths() -> None:
    case = make_paged_case([(5, 4000), (3, 100)], LLAMA_8B, torch.bfloat16, "cuda")
    case = case.with_layout(max_seq_len=131072, max_query_len=5)
    layout: PagedLayout = case.layout
    lengths = layout.seq_lens.clone()
    layout.seq_lens.fill_(5)
    torch.cuda.synchronize()
    paged_attention_on_device(*case.inputs, scaling=128**-0.5)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = paged_attention_on_device(*case.inputs, scaling=128**-0.5)
    layout.seq_lens.copy_(lengths)
    graph.replay()
    assert error_of(output, case) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(
    "batch", [[(1, 256)], [(1, 300)], [(1, 8192)], [(4, 8192)], [(2, 8000)] * 8], ids=str
)
def test_calls_that_follow_each_other_closely_find_the_same(batch: list[tuple[int, int]]) -> None:
    case = make_paged_case(batch, LLAMA_8B, torch.bfloat16, "cuda")
    first = paged_attention_on_device(*case.inputs, scaling=128**-0.5)
    assert error_of(first, case) < 1e-2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [paged_attention_on_device(*case.inputs, scaling=128**-0.5) for _ in range(20)]
    for _ in range(5):
        for output in outputs:
            output.fill_(float("nan"))
        torch.cuda.synchronize()
        graph.replay()
        assert all(torch.equal(output, first) for output in outputs)
