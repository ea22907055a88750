"""Which blocks of the KV cache are in use, and by how many; it knows ids and counts, no tensors.

Block 0 is scratch: padding rows write there, and it is never handed out. A block that nobody
holds waits in the free list, its content untouched, until it is the oldest one there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

SCRATCH_BLOCK_ID = 0


class BlockPool:
    """Reference counts over a fixed number of blocks, and a free list, least recently freed first.

    Args:
        num_blocks: blocks of the storage, the scratch block included; at least 2.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, f"{num_blocks} blocks leave none beside the scratch block"
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that can be handed out at all."""
        return self.num_blocks - 1

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def ref_count(self, block_id: int) -> int:
        """How many hold the block."""
        return self._ref_counts[block_id]

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Hand out the least recently freed blocks; None, and nothing changed, if too few are."""
        if num_blocks > len(self._free):
            return None
        block_ids = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def share(self, block_id: int) -> None:
        """Hold a block whose content is wanted, be it in use or free."""
        if self._ref_counts[block_id] == 0:
            del self._free[block_id]
        self._ref_counts[block_id] += 1

    def release(self, block_id: int, *, reuse_first: bool = False) -> None:
        """Let go of a block once; `reuse_first` says that its content is worth nothing."""
        assert self._ref_counts[block_id] > 0, f"block {block_id} is not held"
        self._ref_counts[block_id] -= 1
        if self._ref_counts[block_id] == 0:
            self._free[block_id] = None
            if reuse_first:
                self._free.move_to_end(block_id, last=False)

    def check_invariants(self, held: Iterable[int]) -> None:
        """Assert that the counts equal what is `held`, and that the rest is free."""
        ref_counts = [0] * self.num_blocks
        for block_id in held:
            ref_counts[block_id] += 1
        assert ref_counts == self._ref_counts, "reference counts differ from what is held"
        assert ref_counts[SCRATCH_BLOCK_ID] == 0, "the scratch block was handed out"
        unheld = {block_id for block_id in range(1, self.num_blocks) if ref_counts[block_id] == 0}
        assert unheld == set(self._free), "the free list differs from the blocks nobody holds"
