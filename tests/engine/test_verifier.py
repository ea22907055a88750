"""The walk accepts exactly the drafts that the target sampled itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.speculative.verifier import Verification, verify, verify_on_device, walk

TOKENS = st.integers(0, 2)


@st.composite
def verify_passes(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    drafts = draw(st.lists(st.lists(TOKENS, max_size=4), max_size=5))
    num_rows = sum(len(draft) + 1 for draft in drafts)
    sampled = draw(st.lists(TOKENS, min_size=num_rows, max_size=num_rows))
    return sampled, drafts


def padded(drafts: list[list[int]]) -> torch.Tensor:
    """[num_requests, max_draft_tokens], padded with a token that samples often equal."""
    width = max((len(draft) for draft in drafts), default=0)
    rows = [draft + [0] * (width - len(draft)) for draft in drafts]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(drafts), width)


def test_emits_samples_up_to_the_first_that_differs() -> None:
    result = walk([7, 8, 9, 4], [[7, 8, 1]])
    assert result == Verification(num_accepted=[2], emitted=[[7, 8, 9]])


def test_emits_the_targets_own_token_when_no_draft_is_right() -> None:
    assert walk([5, 8, 9], [[7, 8]]) == Verification([0], [[5]])


def test_emits_one_more_token_when_all_drafts_are_right() -> None:
    assert walk([7, 8, 9], [[7, 8]]) == Verification([2], [[7, 8, 9]])


def test_a_late_match_does_not_rescue_an_early_miss() -> None:
    assert walk([1, 2, 3, 4], [[0, 2, 3]]) == Verification([0], [[1]])


def test_a_request_without_drafts_emits_its_sample() -> None:
    assert walk([3, 7, 8, 5], [[], [7], []]) == Verification([0, 1, 0], [[3], [7, 8], [5]])


def test_verify_walks_each_request_by_itself() -> None:
    sampled = torch.tensor([7, 8, 9, 4, 6, 7])
    drafts = torch.tensor([[7, 1], [0, 0], [6, 7]])
    result = verify(sampled, drafts, [2, 0, 1])
    assert result == Verification([1, 0, 1], [[7, 8], [4], [6, 7]])


def test_verify_of_nothing_is_nothing() -> None:
    nothing = torch.zeros(0, 3, dtype=torch.int64)
    assert verify(torch.zeros(0, dtype=torch.int64), nothing, []) == Verification([], [])


@given(verify_passes())
@settings(max_examples=200, deadline=None)
def test_verify_equals_the_plain_walk(example: tuple[list[int], list[list[int]]]) -> None:
    sampled, drafts = example
    counts = [len(draft) for draft in drafts]
    assert verify(torch.tensor(sampled, dtype=torch.int64), padded(drafts), counts) == walk(
        sampled, drafts
    )


@given(verify_passes())
@settings(max_examples=200, deadline=None)
def test_verify_on_the_device_equals_the_plain_walk(
    example: tuple[list[int], list[list[int]]],
) -> None:
    sampled, drafts = example
    counts = [len(draft) for draft in drafts]
    samples = torch.tensor(sampled, dtype=torch.int64)
    assert verify_on_device(samples, padded(drafts), counts) == walk(sampled, drafts)
