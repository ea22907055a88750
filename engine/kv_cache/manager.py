"""Gives requests their blocks; knows tables, prefix hits and what may be shared, no tensors.

Target and draft share one table: a block id addresses both models' keys and values, so a hit,
a preemption and an eviction cover both, and there is one budget. Blocks that were filled while the
draft rested are remembered as such, so that nobody takes its part of them for computed. When to
admit, publish or preempt is the scheduler's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.prefix_cache import HashChain, PrefixCache
from engine.request import Request


@dataclass(slots=True)
class _Holding:
    """What the manager knows of one request, waiting or running.

    Attributes:
        chain: hashes of the request's full blocks.
        block_ids: its table, empty while it waits.
        num_published: leading blocks that were found or have been published.
        num_drafted: leading blocks that hold the draft's keys and values too.
        is_background: whether the request is background work.
        awaited: the hash whose block somebody else was computing when last asked.
        expected_from, expected_until: range of its blocks that others are told to wait for.
    """

    chain: HashChain
    block_ids: list[int] = field(default_factory=list)
    num_published: int = 0
    num_drafted: int = 0
    is_background: bool = False
    awaited: bytes | None = None
    expected_from: int = 0
    expected_until: int = 0


class KVCacheManager:
    """Block tables over one pool, with a prefix cache.

    Args:
        num_blocks: blocks of the storage, the scratch block included.
        block_size: tokens per block.
        prefix_caching: whether full blocks of equal prefixes are shared.

    Attributes:
        num_prefix_query_tokens: prompt tokens looked up at first admissions.
        num_prefix_hit_tokens: of those, found.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.num_prefix_query_tokens = 0
        self.num_prefix_hit_tokens = 0
        self._pool = BlockPool(num_blocks)
        self._prefixes = PrefixCache()
        self._holdings: dict[str, _Holding] = {}
        self._drafted: set[int] = set()

    @property
    def num_blocks(self) -> int:
        """Blocks of the storage, the scratch block included."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request holds; published ones among them stay findable until reused."""
        return self._pool.num_free_blocks

    @property
    def capacity_tokens(self) -> int:
        """Tokens that a request alone in the pool could have slots for."""
        return self._pool.num_usable_blocks * self.block_size

    @property
    def usage(self) -> float:
        """Share of the usable blocks that requests hold, 0 to 1."""
        return 1.0 - self._pool.num_free_blocks / self._pool.num_usable_blocks

    def block_ids(self, request: Request) -> list[int]:
        """Return a copy of the request's block table."""
        return list(self._holding(request).block_ids)

    def admit(self, request: Request) -> int | None:
        """Give a request blocks for all its known tokens, cached ones for its published prefix.

        At least one known token stays to compute, because its logits are needed.

        Returns:
            How many leading tokens were found in the cache; None, and nothing changed, if the
            pool cannot hold the rest now.
        """
        holding = self._holding(request)
        assert not holding.block_ids, f"request {request.request_id} was admitted already"
        found = self._find(request, holding)
        num_new = self._num_blocks_for(request.num_tokens) - len(found)
        num_found_free = sum(self._pool.ref_count(block_id) == 0 for block_id in found)
        if num_new > self._pool.num_free_blocks - num_found_free:
            return None
        for block_id in found:
            self._pool.share(block_id)
        holding.block_ids = found
        holding.num_published = len(found)
        holding.num_drafted = next(
            (place for place, block_id in enumerate(found) if block_id not in self._drafted),
            len(found),
        )
        is_allocated = self._grow(holding, num_new)
        assert is_allocated, "free blocks were counted wrongly"
        self._expect(request, holding)
        num_cached_tokens = holding.num_published * self.block_size
        if request.num_cached_tokens is None:
            self.num_prefix_query_tokens += request.num_tokens
            self.num_prefix_hit_tokens += num_cached_tokens
        return num_cached_tokens

    def num_draft_cached_tokens(self, request: Request) -> int:
        """Count leading tokens whose keys and values of the draft were found at admission."""
        return self._holding(request).num_drafted * self.block_size

    def is_prefix_pending(self, request: Request) -> bool:
        """Whether a running request is computing the first block that this one would miss.

        Background work does not count, as it may pause, unless this one is background work too.
        Waiting then turns the miss into a hit; the answer changes as soon as that request has
        computed the block or is gone.
        """
        if not self._shares_prefix(request):
            return False
        holding = self._holding(request)
        if holding.awaited is not None and self._is_expected(holding, holding.awaited):
            return True
        num_found = len(self._find(request, holding))
        if num_found >= self._num_sharable_blocks(request):
            return False
        missed = holding.chain.at(num_found, request.token_ids)
        holding.awaited = missed if self._is_expected(holding, missed) else None
        return holding.awaited is not None

    def allocate_slots(self, request: Request, num_tokens_total: int) -> bool:
        """Grow the table to cover `num_tokens_total` tokens; False = full, nothing changed."""
        holding = self._holding(request)
        num_new = self._num_blocks_for(num_tokens_total) - len(holding.block_ids)
        return self._grow(holding, max(num_new, 0))

    def publish(self, request: Request, num_tokens: int, num_drafted: int | None = None) -> None:
        """Make the full blocks among the first `num_tokens` findable.

        Args:
            request: whose.
            num_tokens: accepted tokens, computed by the target.
            num_drafted: of these, computed by the draft too; None = all.
        """
        if not self.prefix_caching:
            return
        assert num_tokens <= request.num_tokens, "only accepted tokens are published"
        holding = self._holding(request)
        num_full = num_tokens // self.block_size
        for index in range(holding.num_published, num_full):
            hash_ = holding.chain.at(index, request.token_ids)
            self._prefixes.publish(hash_, holding.block_ids[index])
        holding.num_published = max(holding.num_published, num_full)
        num_drafted = num_full if num_drafted is None else num_drafted // self.block_size
        self._drafted.update(holding.block_ids[holding.num_drafted : num_drafted])
        holding.num_drafted = max(holding.num_drafted, num_drafted)
        self._unexpect(request, holding, request.num_computed_tokens // self.block_size)

    def trim(self, request: Request, num_tokens: int) -> None:
        """Give back the trailing blocks that the first `num_tokens` tokens do not need."""
        holding = self._holding(request)
        num_kept = self._num_blocks_for(num_tokens)
        assert num_kept >= holding.num_published, "published blocks cannot be trimmed"
        self._release(holding.block_ids[num_kept:])
        del holding.block_ids[num_kept:]

    def free(self, request: Request) -> None:
        """Give back every block, and take back what others were told to wait for."""
        holding = self._holdings.pop(request.request_id, None)
        if holding is not None:
            self._unexpect(request, holding, holding.expected_until)
            self._release(holding.block_ids)

    def check_invariants(self) -> None:
        """Assert that tables, reference counts, free list and published blocks agree."""
        holdings = self._holdings.values()
        self._pool.check_invariants(b for holding in holdings for b in holding.block_ids)
        self._prefixes.check_invariants(
            (holding.chain.at(index, []), holding.is_background)
            for holding in holdings
            for index in range(holding.expected_from, holding.expected_until)
        )
        for holding in holdings:
            assert len(set(holding.block_ids)) == len(holding.block_ids), "a block appears twice"
            assert holding.num_published <= len(holding.block_ids), "published more than held"

    def _holding(self, request: Request) -> _Holding:
        holding = self._holdings.get(request.request_id)
        if holding is None:
            chain = HashChain(request.cache_salt, self.block_size)
            holding = _Holding(chain, is_background=request.is_background)
            self._holdings[request.request_id] = holding
        return holding

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _num_sharable_blocks(self, request: Request) -> int:
        return (request.num_tokens - 1) // self.block_size

    def _find(self, request: Request, holding: _Holding) -> list[int]:
        if not self._shares_prefix(request):
            return []
        return self._prefixes.find(
            holding.chain.at(index, request.token_ids)
            for index in range(self._num_sharable_blocks(request))
        )

    def _is_expected(self, holding: _Holding, hash_: bytes) -> bool:
        return self._prefixes.is_expected(hash_, is_background=holding.is_background)

    def _shares_prefix(self, request: Request) -> bool:
        # Log probabilities of prompt tokens come from computing them.
        return self.prefix_caching and not request.lacks_prompt_logprobs

    def _grow(self, holding: _Holding, num_blocks: int) -> bool:
        block_ids = self._pool.allocate(num_blocks)
        if block_ids is None:
            return False
        for block_id in block_ids:
            self._prefixes.forget(block_id)
            self._drafted.discard(block_id)
        holding.block_ids.extend(block_ids)
        return True

    def _release(self, block_ids: list[int]) -> None:
        # Last block first: a prefix whose end was evicted is still a prefix.
        for block_id in reversed(block_ids):
            self._pool.release(block_id, reuse_first=not self._prefixes.is_published(block_id))

    def _expect(self, request: Request, holding: _Holding) -> None:
        if not self.prefix_caching:
            return
        holding.expected_from = holding.num_published
        holding.expected_until = request.num_tokens // self.block_size
        for index in range(holding.expected_from, holding.expected_until):
            hash_ = holding.chain.at(index, request.token_ids)
            self._prefixes.expect(hash_, is_background=holding.is_background)

    def _unexpect(self, request: Request, holding: _Holding, until: int) -> None:
        for index in range(holding.expected_from, min(until, holding.expected_until)):
            hash_ = holding.chain.at(index, request.token_ids)
            self._prefixes.unexpect(hash_, is_background=holding.is_background)
            holding.expected_from = index + 1
