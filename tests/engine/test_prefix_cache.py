"""The prefix cache: which hash stands for what, who is found, and what is awaited."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from engine.kv_cache.prefix_cache import HashChain, PrefixCache, block_hash, root_hash

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def test_hash_is_blake2b_of_the_parent_and_the_tokens_as_uint32() -> None:
    parent = root_hash("salt")
    assert parent == blake2b(b"salt", digest_size=16).digest()
    tokens = b"\x01\x00\x00\x00\x00\x01\x00\x00"
    expected = blake2b(parent + tokens, digest_size=16).digest()
    assert block_hash(parent, [1, 256]) == expected


def test_hash_covers_everything_before_the_block() -> None:
    assert HashChain("", 2).at(1, [1, 2, 5, 6]) != HashChain("", 2).at(1, [3, 4, 5, 6])


def test_hash_depends_on_the_salt() -> None:
    assert HashChain("", 2).at(0, [1, 2]) != HashChain("tenant", 2).at(0, [1, 2])


def test_chain_grows_with_the_tokens() -> None:
    chain = HashChain("", 2)
    first = chain.at(0, [1, 2, 3])
    assert chain.at(1, [1, 2, 3, 4]) == HashChain("", 2).at(1, [1, 2, 3, 4])
    assert chain.at(0, [1, 2, 3, 4]) == first


def test_finds_the_longest_published_prefix() -> None:
    cache = PrefixCache()
    cache.publish(A, 1)
    cache.publish(C, 3)
    assert cache.find([A, B, C]) == [1]
    cache.publish(B, 2)
    assert cache.find([A, B, C]) == [1, 2, 3]
    assert cache.find([]) == []


def test_first_publisher_of_a_prefix_stays() -> None:
    cache = PrefixCache()
    cache.publish(A, 1)
    cache.publish(A, 2)
    assert cache.find([A]) == [1]
    assert not cache.is_published(2)
    cache.check_invariants(expected=[])


def test_a_forgotten_block_is_not_found() -> None:
    cache = PrefixCache()
    cache.publish(A, 1)
    cache.forget(1)
    cache.forget(2)
    assert cache.find([A]) == []
    assert len(cache) == 0


def test_a_block_is_expected_until_everyone_who_computes_it_is_done() -> None:
    cache = PrefixCache()
    for hash_ in (A, B, A):
        cache.expect(hash_)
    cache.unexpect(A)
    assert cache.is_expected(A)
    cache.check_invariants(expected=[(A, False), (B, False)])
    cache.unexpect(A)
    assert not cache.is_expected(A)
    assert cache.is_expected(B)


def test_invariants_notice_an_expectation_left_behind() -> None:
    cache = PrefixCache()
    cache.expect(A)
    with pytest.raises(AssertionError, match="taking back"):
        cache.check_invariants(expected=[])
