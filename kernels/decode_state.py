"""What a decode loop knows of its requests, on the device: a row per request slot.

An iteration (some draft passes, a verify pass, a commit) reads and writes only this, so it can be
replayed without the host. The operations over it: `prepare_rows` turns slots into the inputs of a
pass, `place_drafts` stores what a draft pass sampled, `commit` walks the drafts and appends.

The last row is scratch: padding rows and padding requests name it. It stays as it was allocated,
one token long and with a block table of zeros, so that padding reads and writes scratch block 0.
Knows token ids and blocks, nothing of sampling or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class DecodeState:
    """Tensors with one row per slot, the scratch slot last; all contiguous.

    Attributes:
        num_tokens: [num_slots] int64, known tokens: prompt and emitted. The last of them has no
            keys yet.
        last_token: [num_slots] int64, the last known token.
        prev_token: [num_slots] int64, the one before it.
        draft_tokens: [num_slots, max_drafts] int64, what follows the last token, if it is right.
        block_tables: [num_slots, max_blocks] int32; entries without a block are 0.
    """

    num_tokens: torch.Tensor
    last_token: torch.Tensor
    prev_token: torch.Tensor
    draft_tokens: torch.Tensor
    block_tables: torch.Tensor

    @property
    def scratch_slot(self) -> int:
        """The slot of padding."""
        return self.num_tokens.shape[0] - 1

    @property
    def max_drafts(self) -> int:
        """Drafts that a request can have."""
        return self.draft_tokens.shape[1]


def allocate_decode_state(
    num_requests: int, max_drafts: int, max_blocks: int, device: torch.device | str
) -> DecodeState:
    """Make the state of so many requests, and the scratch row behind them.

    Args:
        num_requests: slots beside the scratch slot.
        max_drafts: drafts that a request can have, at least 1.
        max_blocks: blocks that a request can have.
        device: where the state lives.

    Raises:
        ValueError: a size that leaves nothing to index.
    """
    if min(max_drafts, max_blocks) < 1:
        raise ValueError(f"{max_drafts} drafts and {max_blocks} blocks: both must be at least 1.")
    num_slots = num_requests + 1
    return DecodeState(
        num_tokens=torch.ones(num_slots, dtype=torch.int64, device=device),
        last_token=torch.zeros(num_slots, dtype=torch.int64, device=device),
        prev_token=torch.zeros(num_slots, dtype=torch.int64, device=device),
        draft_tokens=torch.zeros(num_slots, max_drafts, dtype=torch.int64, device=device),
        block_tables=torch.zeros(num_slots, max_blocks, dtype=torch.int32, device=device),
    )
