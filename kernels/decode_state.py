"""What a decode loop knows of its requests, on the device: a row per request slot.

An iteration (some draft passes, a verify pass, a commit) reads and writes only this, so it can be
replayed without the host. The operations over it: `prepare_rows` turns slots into the inputs of a
pass, `place_drafts` stores what a draft pass sampled, `commit` walks the drafts and appends. What
they are told about a pass has its types here too: R rows, B requests.

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


@dataclass(frozen=True, slots=True, eq=False)
class PassRows:
    """Which rows a pass has; fixed while an iteration is replayed.

    Attributes:
        slots: [R] int32, of each row's request; padding has the scratch slot and offset 0.
        offsets: [R] int32, -1 up to max_drafts.
        request_slots: [B] int32, of each request; padding has the scratch slot.
        last_offsets: [B] int32, of each request's last row; padding has 0.
    """

    slots: torch.Tensor
    offsets: torch.Tensor
    request_slots: torch.Tensor
    last_offsets: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PassInputs:
    """Buffers that a pass reads.

    Attributes:
        token_ids: [R] int64.
        positions: [R] int64.
        slot_mapping: [R] int64.
        seq_lens: [B] int32.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedRequests:
    """Whose drafts a verify pass looked at.

    Attributes:
        slots: [B] int32; padding has the scratch slot.
        row_starts: [B] int32, of each request's first row among the samples.
        num_drafts: [B] int32, at most `max_drafts`; the request has one row more.
    """

    slots: torch.Tensor
    row_starts: torch.Tensor
    num_drafts: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class OutputCounts:
    """How often each token was emitted, for penalties.

    Attributes:
        counts: [num_rows, vocab] float32.
        rows: [num_slots] int32, each slot's row of `counts`; -1 for none.
    """

    counts: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Dice:
    """What the draws of each slot are keyed by.

    Attributes:
        seeds: [num_slots] int64, the 64 bits of an unsigned seed.
        choices: [num_slots] int64, which of a prompt's answers a request is.
        rates: [num_rates] float64, for each place the chance that its draft is accepted; the last
            holds for all places beyond.
    """

    seeds: torch.Tensor
    choices: torch.Tensor
    rates: torch.Tensor


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
