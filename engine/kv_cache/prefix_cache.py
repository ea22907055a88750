"""Which full blocks hold which prefix, by hash chain; it knows hashes and ids, not who holds them.

The hash of a full block covers every token before it, so equal hashes mean equal prefixes:
`hash = blake2b-128(parent hash | token ids as little-endian uint32)`, and the first parent is
derived from the request's cache salt.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

_HASH_BYTES = 16


def root_hash(cache_salt: str) -> bytes:
    """Hash that stands before the first block; different salts share no blocks."""
    return blake2b(cache_salt.encode(), digest_size=_HASH_BYTES).digest()


def block_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """Hash of one full block and of everything before it."""
    tokens = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return blake2b(parent + tokens, digest_size=_HASH_BYTES).digest()


class HashChain:
    """The hashes of one request's full blocks, computed once each as its tokens grow."""

    def __init__(self, cache_salt: str, block_size: int) -> None:
        self._block_size = block_size
        self._root = root_hash(cache_salt)
        self._hashes: list[bytes] = []

    def at(self, index: int, token_ids: list[int]) -> bytes:
        """Return the hash of block `index` of `token_ids`, which may only have grown."""
        hashes, size = self._hashes, self._block_size
        while len(hashes) <= index:
            start = len(hashes) * size
            parent = hashes[-1] if hashes else self._root
            hashes.append(block_hash(parent, token_ids[start : start + size]))
        return hashes[index]


class PrefixCache:
    """Published blocks by hash, and the hashes that a running request is about to publish."""

    def __init__(self) -> None:
        self._block_by_hash: dict[bytes, int] = {}
        self._hash_by_block: dict[int, bytes] = {}
        self._num_expecting: Counter[tuple[bytes, bool]] = Counter()

    def __len__(self) -> int:
        return len(self._block_by_hash)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest published prefix of `hashes`, reading no further."""
        block_ids: list[int] = []
        for block in map(self._block_by_hash.get, hashes):
            if block is None:
                break
            block_ids.append(block)
        return block_ids

    def publish(self, hash_: bytes, block_id: int) -> None:
        """Make a computed block findable, unless another one holds the same prefix already."""
        if hash_ not in self._block_by_hash:
            self._block_by_hash[hash_] = block_id
            self._hash_by_block[block_id] = hash_

    def is_published(self, block_id: int) -> bool:
        """Whether the block can be found."""
        return block_id in self._hash_by_block

    def forget(self, block_id: int) -> None:
        """Make a block unfindable because its content is about to be overwritten."""
        hash_ = self._hash_by_block.pop(block_id, None)
        if hash_ is not None:
            del self._block_by_hash[hash_]

    def expect(self, hash_: bytes, *, is_background: bool = False) -> None:
        """Note that somebody began to compute this block."""
        self._num_expecting[hash_, is_background] += 1

    def unexpect(self, hash_: bytes, *, is_background: bool = False) -> None:
        """Take one `expect` back, because the block is computed or never will be."""
        self._num_expecting[hash_, is_background] -= 1
        if self._num_expecting[hash_, is_background] == 0:
            del self._num_expecting[hash_, is_background]

    def is_expected(self, hash_: bytes, *, is_background: bool = False) -> bool:
        """Whether somebody is computing the block of this hash now.

        Background work may pause, so only background work waits for it.
        """
        expecting = self._num_expecting
        return (hash_, False) in expecting or (is_background and (hash_, True) in expecting)

    def check_invariants(self, expected: Iterable[tuple[bytes, bool]]) -> None:
        """Assert that both maps agree and that exactly `expected` is being computed."""
        inverse = {block_id: hash_ for hash_, block_id in self._block_by_hash.items()}
        assert inverse == self._hash_by_block, "a block is published under two hashes"
        assert Counter(expected) == self._num_expecting, "somebody left without taking back"
