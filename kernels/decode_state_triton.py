"""The kernels of `prepare_rows`, `place_drafts` and `commit`; each is one small launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.decode_state import (
    DecodeState,
    OutputCounts,
    PassInputs,
    PassRows,
    VerifiedRequests,
)

_BLOCK = 64


def prepare_rows_triton(
    state: DecodeState,
    rows: PassRows,
    inputs: PassInputs,
    block_size: int,
    last_token_id: int | None,
) -> None:
    """Do what `prepare_rows` does."""
    num_rows, num_requests = len(rows.slots), len(rows.request_slots)
    num_programs = triton.cdiv(max(num_rows, num_requests), _BLOCK)
    if num_programs == 0:
        return
    prepare_rows_kernel[(num_programs,)](
        state.num_tokens,
        state.last_token,
        state.prev_token,
        state.draft_tokens,
        state.block_tables,
        rows.slots,
        rows.offsets,
        rows.request_slots,
        rows.last_offsets,
        inputs.token_ids,
        inputs.positions,
        inputs.slot_mapping,
        inputs.seq_lens,
        num_rows,
        num_requests,
        0 if last_token_id is None else last_token_id,
        IS_BOUNDED=last_token_id is not None,
        MAX_DRAFTS=state.max_drafts,
        MAX_BLOCKS=state.block_tables.shape[1],
        BLOCK_SIZE=block_size,
        BLOCK=_BLOCK,
        num_warps=2,
    )


@triton.jit(do_not_specialize=["num_rows", "num_requests"])  # type: ignore[untyped-decorator]
def prepare_rows_kernel(
    num_tokens: tl.tensor,
    last_token: tl.tensor,
    prev_token: tl.tensor,
    draft_tokens: tl.tensor,
    block_tables: tl.tensor,
    slots: tl.tensor,
    offsets: tl.tensor,
    request_slots: tl.tensor,
    last_offsets: tl.tensor,
    token_ids: tl.tensor,
    positions: tl.tensor,
    slot_mapping: tl.tensor,
    seq_lens: tl.tensor,
    num_rows: tl.tensor,
    num_requests: tl.tensor,
    last_token_id: tl.tensor,
    IS_BOUNDED: tl.constexpr,
    MAX_DRAFTS: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid: (blocks of rows,); a program also serves as many requests."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)

    is_request = index < num_requests
    request = tl.load(request_slots + index, mask=is_request, other=0).to(tl.int64)
    last_offset = tl.load(last_offsets + index, mask=is_request, other=0)
    seq_len = tl.load(num_tokens + request, mask=is_request, other=0) + last_offset
    tl.store(seq_lens + index, seq_len.to(tl.int32), mask=is_request)

    is_row = index < num_rows
    slot = tl.load(slots + index, mask=is_row, other=0).to(tl.int64)
    offset = tl.load(offsets + index, mask=is_row, other=0)
    prev = tl.load(prev_token + slot, mask=is_row & (offset < 0), other=0)
    last = tl.load(last_token + slot, mask=is_row & (offset == 0), other=0)
    draft_place = slot * MAX_DRAFTS + offset - 1
    draft = tl.load(draft_tokens + draft_place, mask=is_row & (offset > 0), other=0)
    token = tl.where(offset < 0, prev, tl.where(offset == 0, last, draft))
    if IS_BOUNDED:
        token = tl.minimum(token, last_token_id)
    tl.store(token_ids + index, token, mask=is_row)

    position = tl.load(num_tokens + slot, mask=is_row, other=1) - 1 + offset
    has_block = is_row & (position >= 0) & (position < MAX_BLOCKS * BLOCK_SIZE)
    position = tl.maximum(position, 0)
    table_place = slot * MAX_BLOCKS + position // BLOCK_SIZE
    block = tl.load(block_tables + table_place, mask=has_block, other=0).to(tl.int64)
    cache_slot = tl.where(has_block, block * BLOCK_SIZE + position % BLOCK_SIZE, 0)
    tl.store(positions + index, position, mask=is_row)
    tl.store(slot_mapping + index, cache_slot, mask=is_row)


def place_drafts_triton(
    state: DecodeState,
    sampled: torch.Tensor,
    request_slots: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Do what `place_drafts` does."""
    num_requests = len(request_slots)
    if num_requests == 0:
        return
    place_drafts_kernel[(triton.cdiv(num_requests, _BLOCK),)](
        state.draft_tokens,
        sampled,
        request_slots,
        places,
        num_requests,
        state.scratch_slot,
        MAX_DRAFTS=state.max_drafts,
        BLOCK=_BLOCK,
        num_warps=2,
    )


@triton.jit(do_not_specialize=["num_requests", "scratch_slot"])  # type: ignore[untyped-decorator]
def place_drafts_kernel(
    draft_tokens: tl.tensor,
    sampled: tl.tensor,
    request_slots: tl.tensor,
    places: tl.tensor,
    num_requests: tl.tensor,
    scratch_slot: tl.tensor,
    MAX_DRAFTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid: (blocks of requests,)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_request = index < num_requests
    slot = tl.load(request_slots + index, mask=is_request, other=0).to(tl.int64)
    place = tl.load(places + index, mask=is_request, other=0)
    token = tl.load(sampled + index, mask=is_request, other=0)
    is_kept = is_request & (slot != scratch_slot) & (place < MAX_DRAFTS)
    tl.store(draft_tokens + slot * MAX_DRAFTS + place, token, mask=is_kept)


def commit_triton(
    state: DecodeState,
    sampled: torch.Tensor,
    is_invalid: torch.Tensor,
    requests: VerifiedRequests,
    packed: torch.Tensor,
    accepted_limits: torch.Tensor | None = None,
    output_counts: OutputCounts | None = None,
) -> None:
    """Do what `commit` does."""
    if len(requests.slots) == 0:
        return
    counts = output_counts
    commit_kernel[(len(requests.slots),)](
        state.num_tokens,
        state.last_token,
        state.prev_token,
        state.draft_tokens,
        sampled,
        is_invalid,
        requests.slots,
        requests.row_starts,
        requests.num_drafts,
        packed,
        requests.num_drafts if accepted_limits is None else accepted_limits,
        packed if counts is None else counts.counts,
        requests.slots if counts is None else counts.rows,
        state.scratch_slot,
        0 if counts is None else counts.counts.stride(0),
        HAS_LIMITS=accepted_limits is not None,
        HAS_COUNTS=counts is not None,
        MAX_DRAFTS=state.max_drafts,
        NUM_COLUMNS=packed.shape[1],
        BLOCK=triton.next_power_of_2(packed.shape[1]),
        num_warps=1,
    )


@triton.jit(do_not_specialize=["scratch_slot"])  # type: ignore[untyped-decorator]
def commit_kernel(
    num_tokens: tl.tensor,
    last_token: tl.tensor,
    prev_token: tl.tensor,
    draft_tokens: tl.tensor,
    sampled: tl.tensor,
    is_invalid: tl.tensor,
    slots: tl.tensor,
    row_starts: tl.tensor,
    num_drafts: tl.tensor,
    packed: tl.tensor,
    accepted_limits: tl.tensor,
    output_counts: tl.tensor,
    count_rows: tl.tensor,
    scratch_slot: tl.tensor,
    counts_stride: tl.tensor,
    HAS_LIMITS: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    MAX_DRAFTS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid: (requests,)."""
    request = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    slot = tl.load(slots + request).to(tl.int64)
    is_request = slot != scratch_slot
    limit = tl.load(num_drafts + request)
    row = tl.load(row_starts + request).to(tl.int64) + column
    samples = tl.load(sampled + row, mask=is_request & (column <= limit), other=0)
    drafts = tl.load(draft_tokens + slot * MAX_DRAFTS + column, mask=column < limit, other=0)
    if HAS_LIMITS:
        num_accepted = tl.minimum(tl.load(accepted_limits + request), limit)
        samples = tl.where(column < num_accepted, drafts, samples)
    else:
        agrees = (column < limit) & (drafts == samples)
        num_accepted = tl.min(tl.where(agrees, BLOCK, column), axis=0)

    is_emitted = is_request & (column <= num_accepted)
    emitted = tl.where(is_emitted, samples, 0)
    invalid = tl.load(is_invalid + row, mask=is_emitted, other=0).to(tl.int32)
    any_invalid = tl.max(invalid, axis=0)
    num_emitted = tl.where(is_request, num_accepted + 1, 0)
    result = tl.where(column == MAX_DRAFTS + 1, num_emitted.to(tl.int64), emitted)
    result = tl.where(column == MAX_DRAFTS + 2, any_invalid.to(tl.int64), result)
    place = request.to(tl.int64) * NUM_COLUMNS + column
    tl.store(packed + place, result, mask=column < NUM_COLUMNS)

    if is_request:
        old_last = tl.load(last_token + slot)
        last = tl.sum(tl.where(column == num_accepted, emitted, 0), axis=0)
        before_last = tl.sum(tl.where(column == num_accepted - 1, emitted, 0), axis=0)
        tl.store(prev_token + slot, tl.where(num_accepted > 0, before_last, old_last))
        tl.store(last_token + slot, last)
        tl.store(num_tokens + slot, tl.load(num_tokens + slot) + num_emitted)
        if HAS_COUNTS:
            count_row = tl.load(count_rows + slot).to(tl.int64)
            # A token can be emitted twice; sums of ones are exact in any order.
            counted = output_counts + count_row * counts_stride + emitted
            ones = tl.full([BLOCK], 1.0, tl.float32)
            tl.atomic_add(counted, ones, mask=is_emitted & (count_row >= 0), sem="relaxed")
