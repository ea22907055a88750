"""Turn slots and offsets into the inputs of a pass: draft passes and verify passes alike.

For row r of slot s with offset o, where n = num_tokens[s]:

    position     = n - 1 + o
    token        = prev_token[s]             o = -1
                   last_token[s]             o = 0
                   draft_tokens[s, o - 1]    o > 0
    slot_mapping = block_tables[s, position // block_size] * block_size + position % block_size
    seq_len      = n + last_offset           per request

A verify pass of k drafts has the offsets 0..k, draft pass j > 0 the one offset j. The first draft
pass has -1 and 0: the token before the last one is computed again where the draft has it, and for
the first time where all drafts were accepted and it lags. Shapes: R rows, B requests.
"""

from __future__ import annotations

import torch

from kernels.decode_state import DecodeState, PassInputs, PassRows


def prepare_rows(
    state: DecodeState,
    rows: PassRows,
    inputs: PassInputs,
    *,
    block_size: int,
    last_token_id: int | None = None,
) -> None:
    """Write a pass's inputs.

    A row whose position has no block (before the first token, or beyond the block table) goes to
    the scratch block, so that it overwrites nobody's keys; one before the first token gets
    position 0.

    Args:
        state: is read only.
        rows: of the pass.
        inputs: are overwritten.
        block_size: tokens per block.
        last_token_id: greater tokens become this one, for a draft with fewer embeddings.
    """
    if state.num_tokens.is_cuda:
        from kernels.decode_state_triton import prepare_rows_triton

        prepare_rows_triton(state, rows, inputs, block_size, last_token_id)
    else:
        prepare_rows_reference(state, rows, inputs, block_size, last_token_id)


def prepare_rows_reference(
    state: DecodeState,
    rows: PassRows,
    inputs: PassInputs,
    block_size: int,
    last_token_id: int | None,
) -> None:
    """Do what `prepare_rows` does in torch; also the path of the CPU."""
    slots, offsets = rows.slots.long(), rows.offsets.long()
    drafts = state.draft_tokens[slots, (offsets - 1).clamp(min=0)]
    known = torch.where(offsets < 0, state.prev_token[slots], state.last_token[slots])
    tokens = torch.where(offsets > 0, drafts, known)
    inputs.token_ids.copy_(tokens if last_token_id is None else tokens.clamp(max=last_token_id))

    positions = state.num_tokens[slots] - 1 + offsets
    max_blocks = state.block_tables.shape[1]
    has_block = (positions >= 0) & (positions < max_blocks * block_size)
    blocks = (positions // block_size).clamp(0, max_blocks - 1)
    cache_slots = state.block_tables[slots, blocks].long() * block_size + positions % block_size
    inputs.positions.copy_(positions.clamp(min=0))
    inputs.slot_mapping.copy_(torch.where(has_block, cache_slots, 0))
    inputs.seq_lens.copy_(state.num_tokens[rows.request_slots.long()] + rows.last_offsets)
