"""The state's shapes, and an iteration of all its operations against a plain list of tokens."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from kernels.commit import NUM_EMITTED, commit, commit_reference
from kernels.decode_state import PassInputs, PassRows, VerifiedRequests, allocate_decode_state
from kernels.place_drafts import place_drafts, place_drafts_reference
from kernels.prepare_rows import prepare_rows, prepare_rows_reference
from tests.kernels.decode_states import (
    BLOCK_SIZE,
    MAX_DRAFTS,
    assert_equal,
    assert_scratch_is_unchanged,
    copy_of,
    int32,
    make_state,
)


def test_scratch_row_lies_behind_the_requests() -> None:
    state = allocate_decode_state(3, 2, 5, "cpu")
    assert state.scratch_slot == 3
    assert state.max_drafts == 2
    assert state.block_tables.shape == (4, 5)
    assert_scratch_is_unchanged(state)


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0)])
def test_refuses_sizes_that_leave_nothing_to_index(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        allocate_decode_state(3, *sizes, "cpu")


def next_token(context: list[int]) -> int:
    """A target that knows what it wants."""
    return (7 * context[-1] + 3 * len(context)) % 23


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["reference", "cuda"]
)
def test_iterations_write_what_the_target_wants(device: str) -> None:
    """Drafts of varying quality, kept in a cache of tokens that only slots lead to."""
    k, prompt = 3, [5, 9, 2]
    state = allocate_decode_state(2, k, 12, device)
    slot = 1
    state.num_tokens[slot], state.last_token[slot], state.prev_token[slot] = 3, 2, 9
    state.block_tables[slot] = torch.randperm(12, device=device).int() + 1
    cache = torch.full((13 * BLOCK_SIZE,), -1, device=device)
    cache[(state.block_tables[slot, 0] * BLOCK_SIZE + torch.arange(2, device=device))] = (
        torch.tensor(prompt[:2], device=device)
    )
    request, written = int32([slot], device), list(prompt)
    rows = PassRows(
        int32([slot] * (k + 1), device), int32([0, 1, 2, 3], device), request, int32([k], device)
    )
    inputs = PassInputs(
        *(torch.zeros(k + 1, dtype=torch.int64, device=device) for _ in range(3)),
        int32([0], device),
    )
    packed = torch.zeros(1, k + 3, dtype=torch.int64, device=device)
    for iteration in range(9):
        drafts = list(written)
        for place in range(k):
            right = next_token(drafts)
            drafts.append(right if place < iteration % (k + 1) else right + 1)
            sampled = torch.tensor(drafts[-1:], device=device)
            place_drafts(state, sampled, request, int32([place], device))
        prepare_rows(state, rows, inputs, block_size=BLOCK_SIZE)
        cache[inputs.slot_mapping] = inputs.token_ids
        places = torch.arange(int(inputs.seq_lens[0]), device=device)
        blocks = state.block_tables[slot, places // BLOCK_SIZE]
        context = cache[blocks * BLOCK_SIZE + places % BLOCK_SIZE].tolist()
        assert context == drafts
        samples = [next_token(context[: p + 1]) for p in inputs.positions.tolist()]
        is_invalid = torch.zeros(k + 1, dtype=torch.bool, device=device)
        verified = VerifiedRequests(request, int32([0], device), int32([k], device))
        commit(state, torch.tensor(samples, device=device), is_invalid, verified, packed)
        assert packed[0, NUM_EMITTED] == iteration % (k + 1) + 1
        for token in packed[0, : int(packed[0, NUM_EMITTED])].tolist():
            assert token == next_token(written)
            written.append(token)
    assert state.num_tokens[slot] == len(written)
    assert [state.prev_token[slot], state.last_token[slot]] == written[-2:]
    assert_scratch_is_unchanged(state)


@pytest.mark.gpu
def test_an_iteration_is_replayed_as_it_was_captured() -> None:
    k, device = MAX_DRAFTS, "cuda"
    state, slots = make_state([9, 1, 17], device), int32([2, 0, 3], device)
    theirs = copy_of(state)
    rows = PassRows(
        slots.repeat_interleave(k + 1), int32([*range(k + 1)] * 3, device), slots, slots * 0 + k
    )
    inputs, expected = (
        PassInputs(*torch.zeros(3, len(rows.slots), dtype=torch.int64, device=device), slots * 0)
        for _ in range(2)
    )
    verified = VerifiedRequests(slots, int32([0, k + 1, 2 * k + 2], device), slots * 0 + k)
    is_invalid = torch.zeros_like(rows.slots, dtype=torch.bool)
    packed, their_packed = torch.zeros(2, 3, k + 3, dtype=torch.int64, device=device)

    def iterate() -> None:
        place_drafts(state, inputs.token_ids[: len(slots)], slots, slots * 0)
        prepare_rows(state, rows, inputs, block_size=BLOCK_SIZE)
        commit(state, inputs.token_ids, is_invalid, verified, packed)

    scratch = copy_of(state)
    iterate()
    for field in fields(state):
        getattr(state, field.name).copy_(getattr(scratch, field.name))
    inputs.token_ids.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iterate()
    for _ in range(3):
        graph.replay()
        place_drafts_reference(theirs, expected.token_ids[: len(slots)], slots, slots * 0)
        prepare_rows_reference(theirs, rows, expected, BLOCK_SIZE, None)
        commit_reference(theirs, expected.token_ids, is_invalid, verified, their_packed)
        assert torch.equal(packed, their_packed)
        assert_equal(state, theirs)
