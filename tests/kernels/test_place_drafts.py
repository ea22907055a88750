"""Drafts land at their place, and padding nowhere."""

from __future__ import annotations

import pytest
import torch

from kernels.place_drafts import place_drafts, place_drafts_reference
from tests.kernels.decode_states import (
    MAX_DRAFTS,
    assert_equal,
    assert_scratch_is_unchanged,
    copy_of,
    int32,
    make_state,
)
from tests.kernels.devices import DEVICES


def test_writes_one_token_per_request_and_nothing_else() -> None:
    state = make_state([4, 6, 8], "cpu")
    expected = copy_of(state)
    slots, places = int32([2, 3, 0, 1], "cpu"), int32([0, 1, 3, MAX_DRAFTS], "cpu")
    place_drafts(state, torch.tensor([101, 102, 103, 104]), slots, places)
    expected.draft_tokens[2, 0] = 101
    expected.draft_tokens[0, 3] = 103
    assert_equal(state, expected)
    assert_scratch_is_unchanged(state)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 70])
def test_kernel_equals_reference(count: int, device: str) -> None:
    from kernels.decode_state_triton import place_drafts_triton

    ours = make_state([5] * count, device)
    theirs = copy_of(ours)
    slots = torch.cat([torch.randperm(count).int(), int32([count, count], "cpu")]).to(device)
    places = torch.randint(0, MAX_DRAFTS + 1, (count + 2,), dtype=torch.int32).to(device)
    sampled = torch.arange(1000, 1002 + count, device=device)
    place_drafts_triton(ours, sampled, slots, places)
    place_drafts_reference(theirs, sampled, slots, places)
    assert_equal(ours, theirs)
    assert_scratch_is_unchanged(ours)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_takes_no_requests(device: str) -> None:
    from kernels.decode_state_triton import place_drafts_triton

    state = make_state([5], device)
    before = copy_of(state)
    nothing = int32([], device)
    place_drafts_triton(state, nothing.long(), nothing, nothing)
    assert_equal(state, before)
