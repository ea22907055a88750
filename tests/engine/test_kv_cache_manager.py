"""The KV cache manager: tables, prefix hits, publication and waiting for others' blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.kv_cache.manager import KVCacheManager
from engine.request import Request
from tests.engine.fake_model import make_request

BLOCK_SIZE = 4
PROMPT = list(range(10, 20))  # two full blocks and two tokens


@pytest.fixture
def kv() -> Iterator[KVCacheManager]:
    """Eight blocks, seven of them usable; checked again when the test is over."""
    manager = KVCacheManager(num_blocks=8, block_size=BLOCK_SIZE)
    yield manager
    manager.check_invariants()


def compute(kv: KVCacheManager, request: Request, num_tokens: int) -> None:
    """Pretend that the models computed the request's first tokens, and publish them."""
    request.num_computed_tokens = num_tokens
    kv.publish(request, num_tokens)
    kv.check_invariants()


def serve(kv: KVCacheManager, request: Request) -> None:
    """Admit, compute and free a request, so that its full blocks stay findable."""
    assert kv.admit(request) is not None
    compute(kv, request, request.num_tokens)
    kv.free(request)
    kv.check_invariants()


def test_admission_covers_every_known_token(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    assert kv.admit(request) == 0
    assert len(kv.block_ids(request)) == 3
    assert kv.num_free_blocks == 4
    assert kv.usage == pytest.approx(3 / 7)


def test_admission_into_a_full_pool_changes_nothing(kv: KVCacheManager) -> None:
    kv.admit(make_request("a", 20))
    assert kv.admit(make_request("b", PROMPT)) is None
    assert kv.num_free_blocks == 2
    assert kv.num_prefix_query_tokens == 20


def test_a_published_prefix_is_found_by_the_next_request(kv: KVCacheManager) -> None:
    serve(kv, make_request("a", PROMPT))
    request = make_request("b", [*PROMPT[:8], 99])
    assert kv.admit(request) == 8
    assert kv.num_prefix_query_tokens == 19
    assert kv.num_prefix_hit_tokens == 8


def test_hits_share_the_blocks_of_a_running_request(kv: KVCacheManager) -> None:
    first, second = make_request("a", PROMPT), make_request("b", PROMPT)
    kv.admit(first)
    compute(kv, first, len(PROMPT))
    assert kv.admit(second) == 8
    assert kv.block_ids(first)[:2] == kv.block_ids(second)[:2]
    assert kv.num_free_blocks == 3
    kv.free(first)
    kv.check_invariants()
    assert kv.num_free_blocks == 4


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(4, 0), (5, 4), (8, 4), (9, 8)])
def test_hits_never_cover_the_whole_request(
    kv: KVCacheManager, num_tokens: int, num_cached: int
) -> None:
    serve(kv, make_request("a", PROMPT))
    assert kv.admit(make_request("b", PROMPT[:num_tokens])) == num_cached


def test_only_full_accepted_blocks_are_published(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    kv.admit(request)
    compute(kv, request, 7)
    assert kv.admit(make_request("b", PROMPT)) == 4


def test_salts_keep_prefixes_apart(kv: KVCacheManager) -> None:
    serve(kv, make_request("a", PROMPT, cache_salt="one"))
    assert kv.admit(make_request("b", PROMPT, cache_salt="two")) == 0
    kv.check_invariants()
    assert kv.admit(make_request("c", PROMPT, cache_salt="one")) == 8


def test_a_free_cached_block_is_found_until_it_is_reused(kv: KVCacheManager) -> None:
    serve(kv, make_request("a", PROMPT))
    other = make_request("b", 20)
    kv.admit(other)  # the five blocks without a published prefix
    kv.check_invariants()
    kv.free(other)
    late = make_request("c", PROMPT)
    assert kv.admit(late) == 8
    kv.free(late)
    kv.admit(make_request("d", 24))  # one of the cached blocks too: the end of the prefix
    assert kv.admit(make_request("e", PROMPT[:5])) is None
    kv.check_invariants()


def test_the_end_of_a_prefix_is_evicted_before_its_beginning(kv: KVCacheManager) -> None:
    serve(kv, make_request("a", PROMPT))
    evicting = make_request("b", 24)
    kv.admit(evicting)
    kv.free(evicting)
    assert kv.admit(make_request("c", PROMPT)) == 4


def test_a_hit_on_free_blocks_counts_them_as_taken(kv: KVCacheManager) -> None:
    serve(kv, make_request("a", PROMPT))
    kv.admit(make_request("b", 17))  # five of seven; two cached ones are free
    assert kv.admit(make_request("c", PROMPT)) is None
    kv.check_invariants()
    assert kv.num_free_blocks == 2


def test_slots_grow_by_need_or_not_at_all(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    kv.admit(request)
    assert kv.allocate_slots(request, 12)
    assert len(kv.block_ids(request)) == 3
    assert kv.allocate_slots(request, 13)
    assert len(kv.block_ids(request)) == 4
    assert not kv.allocate_slots(request, 29)
    assert len(kv.block_ids(request)) == 4
    assert kv.capacity_tokens == 28


def test_trimming_gives_back_what_drafts_needed(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    kv.admit(request)
    kv.allocate_slots(request, 20)
    kept = kv.block_ids(request)[:3]
    kv.trim(request, 12)
    assert kv.block_ids(request) == kept
    assert kv.num_free_blocks == 4


def test_block_ids_are_a_copy(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    kv.admit(request)
    kv.block_ids(request).clear()
    assert len(kv.block_ids(request)) == 3


def test_freeing_a_request_that_was_never_admitted_is_harmless(kv: KVCacheManager) -> None:
    kv.free(make_request("a", PROMPT))
    assert kv.num_free_blocks == 7


def test_a_resumed_request_finds_its_own_answer(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    kv.admit(request)
    request.append([31, 32, 33])
    kv.allocate_slots(request, 13)
    compute(kv, request, 12)
    kv.free(request)
    assert kv.admit(request) == 12


def test_readmission_is_not_counted_as_a_query(kv: KVCacheManager) -> None:
    request = make_request("a", PROMPT)
    request.num_cached_tokens = kv.admit(request)
    kv.free(request)
    kv.admit(request)
    assert kv.num_prefix_query_tokens == len(PROMPT)


def test_a_prefix_is_pending_while_a_running_request_computes_it(kv: KVCacheManager) -> None:
    first, second = make_request("a", PROMPT), make_request("b", PROMPT)
    assert not kv.is_prefix_pending(second)
    kv.admit(first)
    assert kv.is_prefix_pending(second)
    compute(kv, first, 4)
    assert kv.is_prefix_pending(second)
    compute(kv, first, 8)
    assert not kv.is_prefix_pending(second)
    assert kv.admit(second) == 8


def test_a_prefix_is_not_pending_once_its_owner_is_gone(kv: KVCacheManager) -> None:
    first, second = make_request("a", PROMPT), make_request("b", PROMPT)
    kv.admit(first)
    assert kv.is_prefix_pending(second)
    kv.free(first)
    assert not kv.is_prefix_pending(second)


def test_a_prefix_that_its_owner_computed_but_cannot_publish_is_not_pending(
    kv: KVCacheManager,
) -> None:
    first, second = make_request("a", PROMPT), make_request("b", PROMPT)
    kv.admit(first)
    first.num_computed_tokens = 8
    kv.publish(first, 0)  # the draft has computed nothing of it
    assert not kv.is_prefix_pending(second)


def test_a_block_that_could_not_be_a_hit_is_not_pending(kv: KVCacheManager) -> None:
    kv.admit(make_request("a", PROMPT))
    assert not kv.is_prefix_pending(make_request("b", PROMPT[:4]))
    assert not kv.is_prefix_pending(make_request("c", PROMPT, cache_salt="other"))
    assert not kv.is_prefix_pending(make_request("d", [99, *PROMPT]))


def test_without_prefix_caching_nothing_is_found_or_pending() -> None:
    kv = KVCacheManager(num_blocks=8, block_size=BLOCK_SIZE, prefix_caching=False)
    first, second = make_request("a", PROMPT), make_request("b", PROMPT)
    kv.admit(first)
    assert not kv.is_prefix_pending(second)
    compute(kv, first, len(PROMPT))
    assert kv.admit(second) == 0
    kv.check_invariants()
