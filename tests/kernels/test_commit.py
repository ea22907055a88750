"""A commit emits what the host's walk emits, advances the state, and leaves padding alone."""

from __future__ import annotations

import pytest
import torch

from engine.speculative.verifier import walk
from kernels.commit import ANY_INVALID, NUM_EMITTED, commit, commit_reference
from kernels.decode_state import DecodeState, OutputCounts, VerifiedRequests
from tests.kernels.decode_states import (
    MAX_DRAFTS,
    VOCAB,
    assert_equal,
    assert_scratch_is_unchanged,
    copy_of,
    int32,
    make_state,
)
from tests.kernels.devices import DEVICES

# Slots, their numbers of drafts, and how many of these the target agrees with.
BATCHES = {
    "none_accepted": ([0], [4], [0]),
    "all_accepted": ([1], [4], [4]),
    "no_drafts": ([2, 0], [0, 0], [0, 0]),
    "ragged": ([2, 0, 1], [1, 4, 3], [1, 2, 0]),
    "agrees_beyond_its_drafts": ([0, 1], [2, 1], [4, 4]),
    "padding": ([1, 3, 3], [2, 0, 4], [1, 0, 4]),
    "nothing": ([], [], []),
}


class Case:
    """A verify pass over a state, and its poisoned result."""

    def __init__(self, name: str, device: str) -> None:
        slots, num_drafts, num_agreed = BATCHES[name]
        self.state = make_state([9, 1, 17], device)
        self.slots, self.num_drafts = slots, num_drafts
        samples: list[int] = []
        starts = []
        for slot, count, agreed in zip(slots, num_drafts, num_agreed, strict=True):
            drafts = self.state.draft_tokens[slot].tolist()
            starts.append(len(samples))
            mine = [
                draft if place < agreed else VOCAB - draft + 50
                for place, draft in enumerate(drafts)
            ]
            samples += [*mine, 60 + slot][: count + 1]
        self.samples = samples
        self.sampled = torch.tensor(samples, dtype=torch.int64, device=device)
        self.is_invalid = torch.zeros(len(samples), dtype=torch.bool, device=device)
        self.requests = VerifiedRequests(
            int32(slots, device), int32(starts, device), int32(num_drafts, device)
        )
        self.packed = torch.full((len(slots), MAX_DRAFTS + 3), -77, device=device)
        counts = torch.rand(2, 200, device=device).round()
        self.output_counts = OutputCounts(counts, int32([1, -1, 0, -1], device))

    def arguments(self) -> tuple[torch.Tensor, torch.Tensor, VerifiedRequests]:
        """What the ops take between state and result."""
        return self.sampled, self.is_invalid, self.requests


def emitted_of(packed: torch.Tensor) -> list[list[int]]:
    """Emitted tokens of each request."""
    return [row[: row[NUM_EMITTED]] for row in packed.tolist()]


def check_state(state: DecodeState, before: DecodeState, slot: int, emitted: list[int]) -> None:
    """A slot's tokens are those before and the emitted ones."""
    tokens = [int(before.prev_token[slot]), int(before.last_token[slot]), *emitted]
    assert state.num_tokens[slot] == before.num_tokens[slot] + len(emitted)
    assert [state.prev_token[slot], state.last_token[slot]] == tokens[-2:]


@pytest.mark.parametrize("name", BATCHES)
def test_emits_what_the_walk_on_the_host_emits(name: str) -> None:
    case = Case(name, "cpu")
    before = copy_of(case.state)
    commit(case.state, *case.arguments(), case.packed)
    pairs = list(zip(case.slots, case.num_drafts, strict=True))
    drafts = [before.draft_tokens[slot, :count].tolist() for slot, count in pairs]
    walked = walk(case.samples, drafts).emitted
    expected = [
        [] if slot == before.scratch_slot else tokens
        for slot, tokens in zip(case.slots, walked, strict=True)
    ]
    assert emitted_of(case.packed) == expected
    for row, tokens in zip(case.packed.tolist(), expected, strict=True):
        assert row[len(tokens) : NUM_EMITTED] == [0] * (MAX_DRAFTS + 1 - len(tokens))
        assert row[ANY_INVALID] == 0
    for slot, tokens in zip(case.slots, expected, strict=True):
        check_state(case.state, before, slot, tokens)
    assert_scratch_is_unchanged(case.state)


@pytest.mark.parametrize(("row", "is_seen"), [(2, True), (4, True), (5, False), (6, False)])
def test_says_whether_an_emitted_token_is_invalid(row: int, is_seen: bool) -> None:
    case = Case("ragged", "cpu")  # its second request has the rows 2 to 6 and emits 2 to 4
    case.is_invalid[row] = True
    commit(case.state, *case.arguments(), case.packed)
    assert case.packed[:, ANY_INVALID].tolist() == [0, int(is_seen), 0]


def test_where_limits_decide_drafts_are_emitted_as_drafted() -> None:
    case = Case("ragged", "cpu")
    before = copy_of(case.state)
    limits = int32([9, 3, 0], "cpu")
    commit(case.state, *case.arguments(), case.packed, accepted_limits=limits)
    accepted = [min(*pair) for pair in zip([9, 3, 0], case.num_drafts, strict=True)]
    starts = case.requests.row_starts.tolist()
    expected = [
        [*before.draft_tokens[slot, :count].tolist(), case.samples[start + count]]
        for slot, start, count in zip(case.slots, starts, accepted, strict=True)
    ]
    assert emitted_of(case.packed) == expected
    for slot, tokens in zip(case.slots, expected, strict=True):
        check_state(case.state, before, slot, tokens)


def test_counts_emitted_tokens_of_requests_with_penalties() -> None:
    case = Case("ragged", "cpu")
    expected = case.output_counts.counts.clone()
    case.sampled[2:5] = case.state.draft_tokens[0, :1]  # one token, three times in a row
    case.state.draft_tokens[0] = case.state.draft_tokens[0, 0]
    commit(case.state, *case.arguments(), case.packed, output_counts=case.output_counts)
    for slot, tokens in zip(case.slots, emitted_of(case.packed), strict=True):
        row = int(case.output_counts.rows[slot])
        for token in tokens if row >= 0 else []:
            expected[row, token] += 1
    assert emitted_of(case.packed)[1][:3] == [int(case.sampled[2])] * 3
    assert torch.equal(case.output_counts.counts, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_counts", [False, True])
@pytest.mark.parametrize("with_limits", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_kernel_equals_reference(
    name: str, with_limits: bool, with_counts: bool, device: str
) -> None:
    from kernels.decode_state_triton import commit_triton

    case = Case(name, device)
    case.is_invalid.random_(0, 2)
    limits = int32([2, 0, 9][: len(case.slots)], device) if with_limits else None
    theirs, their_packed = copy_of(case.state), case.packed.clone()
    our_counts = case.output_counts
    their_counts = OutputCounts(our_counts.counts.clone(), our_counts.rows)
    commit_triton(
        case.state, *case.arguments(), case.packed, limits, our_counts if with_counts else None
    )
    commit_reference(
        theirs, *case.arguments(), their_packed, limits, their_counts if with_counts else None
    )
    assert torch.equal(case.packed, their_packed)
    assert torch.equal(our_counts.counts, their_counts.counts)
    assert_equal(case.state, theirs)
    assert_scratch_is_unchanged(case.state)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_counts_a_token_as_often_as_it_is_emitted(device: str) -> None:
    from kernels.decode_state_triton import commit_triton

    case = Case("all_accepted", device)
    case.state.draft_tokens[1], case.sampled[:] = 7, 7
    case.output_counts.counts.zero_()
    case.output_counts.rows[1] = 0
    commit_triton(case.state, *case.arguments(), case.packed, None, case.output_counts)
    assert case.output_counts.counts[0, 7] == MAX_DRAFTS + 1
    assert case.output_counts.counts.sum() == MAX_DRAFTS + 1
