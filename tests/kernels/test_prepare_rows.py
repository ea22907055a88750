"""Rows get the token, position and cache slot that the state says, one row at a time."""

from __future__ import annotations

import pytest
import torch

from kernels.decode_state import DecodeState, PassInputs, PassRows
from kernels.prepare_rows import prepare_rows, prepare_rows_reference
from tests.kernels.decode_states import (
    BLOCK_SIZE,
    MAX_BLOCKS,
    assert_equal,
    copy_of,
    int32,
    make_state,
)
from tests.kernels.devices import DEVICES

SCRATCH = 3
TOKENS = [9, 1, 17]
# Each pass: (slot, offset) of its rows, (slot, last offset) of its requests.
PASSES = {
    "verify": (
        [(2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (0, 0), (1, 0), (1, 1)],
        [(2, 4), (0, 0), (1, 1)],
    ),
    "first_draft": ([(0, -1), (0, 0), (1, -1), (1, 0)], [(0, 0), (1, 0)]),
    "later_draft": ([(1, 3), (0, 2)], [(1, 3), (0, 2)]),
    "padding": ([(0, 0), (SCRATCH, 0), (SCRATCH, 0)], [(0, 0), (SCRATCH, 0)]),
    "nothing": ([], []),
}


def pass_rows(name: str, device: str) -> PassRows:
    """The rows of a pass as tensors."""
    rows, requests = PASSES[name]
    return PassRows(
        int32([slot for slot, _ in rows], device),
        int32([offset for _, offset in rows], device),
        int32([slot for slot, _ in requests], device),
        int32([offset for _, offset in requests], device),
    )


def poisoned(rows: PassRows) -> PassInputs:
    """Buffers that were not written."""

    def buffer(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.full_like(like, -77, dtype=dtype)

    per_row = [buffer(rows.slots, torch.int64) for _ in range(3)]
    return PassInputs(*per_row, buffer(rows.request_slots, torch.int32))


def by_hand(state: DecodeState, slot: int, offset: int) -> tuple[int, int, int]:
    """Token, position and cache slot of one row."""
    position = int(state.num_tokens[slot]) - 1 + offset
    if offset > 0:
        token = int(state.draft_tokens[slot, offset - 1])
    else:
        token = int(state.prev_token[slot] if offset < 0 else state.last_token[slot])
    if position < 0:
        return token, 0, 0
    if position >= MAX_BLOCKS * BLOCK_SIZE:
        return token, position, 0
    block = int(state.block_tables[slot, position // BLOCK_SIZE])
    return token, position, block * BLOCK_SIZE + position % BLOCK_SIZE


@pytest.mark.parametrize("last_token_id", [None, 20])
@pytest.mark.parametrize("name", PASSES)
def test_reference_is_what_one_row_at_a_time_gives(name: str, last_token_id: int | None) -> None:
    state, rows = make_state(TOKENS, "cpu"), pass_rows(name, "cpu")
    inputs = poisoned(rows)
    prepare_rows(state, rows, inputs, block_size=BLOCK_SIZE, last_token_id=last_token_id)
    for row, (slot, offset) in enumerate(PASSES[name][0]):
        token, position, cache_slot = by_hand(state, slot, offset)
        assert inputs.token_ids[row] == min(token, last_token_id or token)
        assert inputs.positions[row] == position
        assert inputs.slot_mapping[row] == cache_slot
    for index, (slot, offset) in enumerate(PASSES[name][1]):
        assert inputs.seq_lens[index] == state.num_tokens[slot] + offset


def test_rows_without_a_block_go_to_the_scratch_block() -> None:
    state = make_state([1, MAX_BLOCKS * BLOCK_SIZE, 4], "cpu")
    rows = PassRows(*(int32(v, "cpu") for v in ([0, 0, 1, 1], [-1, 0, 0, 1], [0, 1], [0, 1])))
    inputs = poisoned(rows)
    prepare_rows(state, rows, inputs, block_size=BLOCK_SIZE)
    last_slot = int(state.block_tables[1, -1]) * BLOCK_SIZE + BLOCK_SIZE - 1
    first_slot = int(state.block_tables[0, 0]) * BLOCK_SIZE
    assert inputs.slot_mapping.tolist() == [0, first_slot, last_slot, 0]
    assert inputs.positions[0] == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last_token_id", [None, 20])
@pytest.mark.parametrize("tokens", [TOKENS, [1, MAX_BLOCKS * BLOCK_SIZE, 8]])
@pytest.mark.parametrize("name", PASSES)
def test_kernel_equals_reference(
    name: str, tokens: list[int], last_token_id: int | None, device: str
) -> None:
    from kernels.decode_state_triton import prepare_rows_triton

    state, rows = make_state(tokens, device), pass_rows(name, device)
    before, ours, theirs = copy_of(state), poisoned(rows), poisoned(rows)
    prepare_rows_triton(state, rows, ours, BLOCK_SIZE, last_token_id)
    prepare_rows_reference(state, rows, theirs, BLOCK_SIZE, last_token_id)
    assert_inputs_equal(ours, theirs)
    assert_equal(state, before)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_takes_more_rows_than_one_program(device: str) -> None:
    from kernels.decode_state_triton import prepare_rows_triton

    state = make_state([1 + i % 19 for i in range(70)], device)
    slots = [slot for slot in range(70) for _ in range(3)]
    rows = PassRows(
        int32(slots, device),
        int32([0, 1, 2] * 70, device),
        int32(list(range(70)), device),
        int32([2] * 70, device),
    )
    ours, theirs = poisoned(rows), poisoned(rows)
    prepare_rows_triton(state, rows, ours, BLOCK_SIZE, None)
    prepare_rows_reference(state, rows, theirs, BLOCK_SIZE, None)
    assert_inputs_equal(ours, theirs)


def assert_inputs_equal(ours: PassInputs, theirs: PassInputs) -> None:
    """Compare every buffer."""
    for name in ("token_ids", "positions", "slot_mapping", "seq_lens"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
