"""Paged attention against its reference: one row at a time, in float64, over poisoned caches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kernels.paged_attention import (
    AttentionPlan,
    paged_attention,
    paged_attention_reference,
    plan_paged_attention,
)

BLOCK_SIZE = 4
KV_HEADS = 2
HEAD_DIM = 16
SCALING = 0.3

# Each batch: (rows, keys) per request.
BATCHES = {
    "one_row": [(1, 1)],
    "decode_one": [(1, 37)],
    "verify_one": [(5, 23)],
    "prefill_one": [(19, 19)],
    "decode_batch": [(1, 3), (1, 40), (1, 17), (1, 8)],
    "verify_batch": [(5, 12), (5, 31), (5, 5)],
    "ragged_batch": [(1, 9), (4, 20), (3, 3), (1, 1), (9, 26)],
    "length_classes": [(1, 5), (2, 300), (1, 290), (3, 9)],
    "request_without_rows": [(0, 6), (2, 6), (0, 1)],
}
LONG_BATCHES = {
    "mixed_batch": [(1, 30), (5, 33), (70, 90)],
    "rows_in_pieces": [(300, 310)],
    "whole_prompt_in_pieces": [(260, 260), (1, 7)],
}
ALL_BATCHES = BATCHES | LONG_BATCHES
TOLERANCES = [
    pytest.param((torch.float32, 2e-6, 2e-5), id="float32"),
    pytest.param((torch.float64, 1e-12, 1e-12), id="float64"),
    pytest.param((torch.bfloat16, 2e-2, 2e-2), id="bfloat16"),
    pytest.param((torch.float16, 4e-3, 4e-3), id="float16"),
]
EXTRAS = {
    "plain": {},
    "window": {"sliding_window": 6},
    "window_of_one": {"sliding_window": 1},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "window_softcap_sinks": {"sliding_window": 7, "softcap": 2.0, "sinks": True},
}


@dataclass
class Case:
    """Caches that hold values only where a request owns them, and what describes the batch."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor

    def plan(self) -> AttentionPlan:
        return plan_paged_attention(self.block_tables, self.cu_seqlens_q, self.seq_lens, BLOCK_SIZE)

    def attend(self, plan: AttentionPlan | None = None, **extras: object) -> torch.Tensor:
        return paged_attention(
            self.query, self.key_cache, self.value_cache, plan or self.plan(),
            scaling=SCALING, **extras,
        )  # fmt: skip

    def reference(self, **extras: object) -> torch.Tensor:
        return paged_attention_reference(
            self.query, self.key_cache, self.value_cache,
            self.block_tables, self.cu_seqlens_q, self.seq_lens, scaling=SCALING, **extras,
        )  # fmt: skip


def make_case(
    batch: list[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    *,
    num_heads: int = 4,
    value_dim: int = HEAD_DIM,
    shuffle_blocks: bool = True,
) -> Case:
    generator = torch.Generator().manual_seed(len(batch) + sum(keys for _, keys in batch))
    num_used = [-(-keys // BLOCK_SIZE) for _, keys in batch]
    num_blocks = 1 + sum(num_used)
    order = torch.arange(1, num_blocks)
    if shuffle_blocks:
        order = order[torch.randperm(len(order), generator=generator)]
    key_cache = torch.full((num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), float("nan"), dtype=dtype)
    value_cache = torch.full((*key_cache.shape[:3], value_dim), float("nan"), dtype=dtype)
    block_tables = torch.full((len(batch), max(num_used, default=0) + 1), 0, dtype=torch.int32)
    for index, ((_, keys), used) in enumerate(zip(batch, num_used, strict=True)):
        own, order = order[:used], order[used:]
        block_tables[index, :used] = own
        for position in range(keys):
            slot = (own[position // BLOCK_SIZE], position % BLOCK_SIZE)
            key_cache[slot] = torch.randn(KV_HEADS, HEAD_DIM, generator=generator).to(dtype)
            value_cache[slot] = torch.randn(KV_HEADS, value_dim, generator=generator).to(dtype)
    rows = torch.tensor([0] + [rows for rows, _ in batch])
    num_tokens = int(rows.sum())
    return Case(
        # As models give it: heads before tokens in memory.
        query=torch.randn(num_heads, num_tokens, HEAD_DIM, generator=generator)
        .to(dtype)
        .transpose(0, 1),
        key_cache=key_cache,
        value_cache=value_cache,
        block_tables=block_tables,
        cu_seqlens_q=rows.cumsum(0).to(torch.int32),
        seq_lens=torch.tensor([keys for _, keys in batch], dtype=torch.int32),
    )


def with_sinks(extras: dict[str, object], num_heads: int, dtype: torch.dtype) -> dict[str, object]:
    if "sinks" not in extras:
        return extras
    return {**extras, "sinks": torch.linspace(-1.0, 2.0, num_heads).to(dtype)}


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_equals_reference(
    batch: list[tuple[int, int]],
    extras: dict[str, object],
    tolerance: tuple[torch.dtype, float, float],
) -> None:
    dtype, atol, rtol = tolerance
    case = make_case(batch, dtype)
    own = with_sinks(extras, 4, dtype)
    output = case.attend(**own)
    if dtype is torch.float64 and ("softcap" in own or "sinks" in own):
        atol, rtol = 2e-6, 2e-5  # the softmax is float32 by contract
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), case.reference(**own), atol=atol, rtol=rtol)


@pytest.mark.parametrize("batch", LONG_BATCHES.values(), ids=LONG_BATCHES.keys())
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_many_rows_equal_reference(batch: list[tuple[int, int]], extras: dict[str, object]) -> None:
    case = make_case(batch)
    own = with_sinks(extras, 4, torch.float32)
    torch.testing.assert_close(
        case.attend(**own).double(), case.reference(**own), atol=2e-6, rtol=2e-5
    )


@pytest.mark.parametrize("num_heads", [2, 4, 14])
@pytest.mark.parametrize("shuffle_blocks", [True, False])
@pytest.mark.parametrize("batch", ["verify_one", "verify_batch", "rows_in_pieces"])
def test_heads_share_kv_heads(num_heads: int, shuffle_blocks: bool, batch: str) -> None:
    case = make_case(ALL_BATCHES[batch], num_heads=num_heads, shuffle_blocks=shuffle_blocks)
    torch.testing.assert_close(case.attend().double(), case.reference(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("batch", ["verify_one", "ragged_batch", "mixed_batch"])
def test_value_heads_of_another_width(batch: str, extras: dict[str, object]) -> None:
    case = make_case(ALL_BATCHES[batch], value_dim=8)
    own = with_sinks(extras, 4, torch.float32)
    output = case.attend(**own)
    assert output.shape[2] == 8
    torch.testing.assert_close(output.double(), case.reference(**own), atol=2e-6, rtol=2e-5)


def test_consecutive_blocks_are_read_in_place() -> None:
    case = make_case([(2, 30)], shuffle_blocks=False)
    span = case.plan().groups[0].span(None)
    assert span.gather(case.key_cache, 1).data_ptr() == case.key_cache[1].data_ptr()


def test_a_window_beyond_all_keys_costs_no_mask_of_its_own() -> None:
    group = make_case(BATCHES["decode_batch"]).plan().groups[0]
    assert group.span(1000) is group.span(None)


def test_one_plan_serves_layers_with_and_without_windows() -> None:
    case = make_case(BATCHES["ragged_batch"])
    plan = case.plan()
    for window in (None, 5, None, 3, 5):
        expected = case.reference(sliding_window=window)
        output = case.attend(plan, sliding_window=window)
        torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=2e-5)


def test_another_requests_nan_stays_its_own() -> None:
    case = make_case(BATCHES["decode_batch"])
    expected = case.attend()
    case.value_cache[case.block_tables[1, 0]] = float("nan")
    output = case.attend()
    assert output[1].isnan().all()
    torch.testing.assert_close(output[[0, 2, 3]], expected[[0, 2, 3]])


def test_a_decode_batch_is_one_call() -> None:
    assert len(make_case(BATCHES["decode_batch"]).plan().groups) == 1
    assert len(make_case(BATCHES["ragged_batch"]).plan().groups) == 1


def test_empty_batch_gives_no_rows() -> None:
    case = make_case([])
    assert case.attend().shape == (0, 4, HEAD_DIM)


def test_refuses_more_rows_than_keys() -> None:
    with pytest.raises(ValueError, match="3 rows exceed 2 keys"):
        make_case([(3, 2)]).plan()


def test_refuses_a_block_table_that_is_too_short() -> None:
    case = make_case([(1, 9)])
    case.seq_lens += 8
    with pytest.raises(ValueError, match="17 keys exceed its 4 blocks of 4"):
        case.plan()


def test_refuses_rows_that_the_plan_does_not_have() -> None:
    case = make_case(BATCHES["verify_one"])
    case.query = case.query[:4]
    with pytest.raises(ValueError, match="4 query rows, but the plan has 5"):
        case.attend()


def test_refuses_heads_that_do_not_share_evenly() -> None:
    case = make_case(BATCHES["decode_one"], num_heads=3)
    with pytest.raises(ValueError, match="3 heads are no multiple of 2 KV heads"):
        case.attend()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", ALL_BATCHES.values(), ids=ALL_BATCHES.keys())
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_equals_reference_on_cuda(batch: list[tuple[int, int]], extras: dict[str, object]) -> None:
    case = make_case(batch)
    own = with_sinks(extras, 4, torch.float32)
    expected = case.reference(**own)
    device = torch.device("cuda")
    plan = plan_paged_attention(
        case.block_tables, case.cu_seqlens_q, case.seq_lens, BLOCK_SIZE, device=device
    )
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in own.items()}
    output = paged_attention(
        case.query.to(device), case.key_cache.to(device), case.value_cache.to(device), plan,
        scaling=SCALING, **moved,
    )  # fmt: skip
    torch.testing.assert_close(output.double().cpu(), expected, atol=1e-5, rtol=1e-4)
