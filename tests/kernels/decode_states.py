"""States of a decode loop with something in every row, for the tests of its operations."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from kernels.decode_state import DecodeState, allocate_decode_state

VOCAB = 50
MAX_DRAFTS = 4
MAX_BLOCKS = 6
BLOCK_SIZE = 4


def int32(values: list[int], device: str) -> torch.Tensor:
    """Slots, offsets and counts."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def make_state(num_tokens: list[int], device: str) -> DecodeState:
    """A state of so many tokens per request, of random tokens and blocks."""
    count = len(num_tokens)
    state = allocate_decode_state(count, MAX_DRAFTS, MAX_BLOCKS, device)
    state.num_tokens[:-1] = torch.tensor(num_tokens, device=device)
    for name in ("last_token", "prev_token", "draft_tokens"):
        getattr(state, name)[:-1].random_(1, VOCAB)
    blocks = 1 + torch.randperm(count * MAX_BLOCKS, device=device)
    state.block_tables[:-1] = blocks.view(count, MAX_BLOCKS).int()
    return state


def copy_of(state: DecodeState) -> DecodeState:
    """The same state in tensors of its own."""
    return replace(state, **{f.name: getattr(state, f.name).clone() for f in fields(state)})


def assert_equal(ours: DecodeState, theirs: DecodeState) -> None:
    """Compare every row, the scratch row too."""
    for field in fields(ours):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


def assert_scratch_is_unchanged(state: DecodeState) -> None:
    """The scratch row is as it was allocated."""
    fresh = allocate_decode_state(0, state.max_drafts, state.block_tables.shape[1], "cpu")
    for field in fields(state):
        assert torch.equal(getattr(state, field.name)[-1:].cpu(), getattr(fresh, field.name))
