"""The block pool: what is handed out, in which order, and what stays untouched."""

from __future__ import annotations

import pytest

from engine.kv_cache.block_pool import SCRATCH_BLOCK_ID, BlockPool


def test_never_hands_out_the_scratch_block() -> None:
    pool = BlockPool(8)
    block_ids = pool.allocate(7)
    assert block_ids is not None
    assert sorted(block_ids) == [1, 2, 3, 4, 5, 6, 7]
    assert SCRATCH_BLOCK_ID not in block_ids
    pool.check_invariants(held=block_ids)


def test_a_request_for_too_many_blocks_changes_nothing() -> None:
    pool = BlockPool(8)
    assert pool.allocate(8) is None
    assert pool.num_free_blocks == 7
    pool.check_invariants(held=[])


def test_an_empty_allocation_is_possible_even_when_full() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    assert pool.allocate(0) == []


def test_hands_out_the_block_that_was_freed_first() -> None:
    pool = BlockPool(4)
    pool.allocate(3)
    for block_id in (2, 3, 1):
        pool.release(block_id)
    assert pool.allocate(3) == [2, 3, 1]


def test_hands_out_a_worthless_block_before_all_others() -> None:
    pool = BlockPool(4)
    pool.allocate(3)
    pool.release(2)
    pool.release(3, reuse_first=True)
    assert pool.allocate(2) == [3, 2]


def test_a_shared_block_is_free_only_when_everyone_let_go() -> None:
    pool = BlockPool(4)
    pool.allocate(1)
    pool.share(1)
    pool.release(1)
    assert pool.num_free_blocks == 2
    pool.check_invariants(held=[1])
    pool.release(1)
    assert pool.num_free_blocks == 3
    pool.check_invariants(held=[])


def test_sharing_a_free_block_takes_it_out_of_the_free_list() -> None:
    pool = BlockPool(4)
    pool.share(2)
    pool.check_invariants(held=[2])
    assert pool.allocate(2) == [1, 3]


def test_letting_go_of_a_free_block_is_our_own_mistake() -> None:
    pool = BlockPool(4)
    with pytest.raises(AssertionError, match="not held"):
        pool.release(1)


@pytest.mark.parametrize("held", [[], [1, 1], [1, 2]])
def test_invariants_notice_a_leak(held: list[int]) -> None:
    pool = BlockPool(4)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_invariants(held=held)
