"""Store the tokens that a draft pass sampled in the state of their requests.

draft_tokens[request_slots[i], places[i]] = sampled[i]
"""

from __future__ import annotations

import torch

from kernels.decode_state import DecodeState


def place_drafts(
    state: DecodeState,
    sampled: torch.Tensor,
    request_slots: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Store one draft per request, in place.

    Args:
        state: whose `draft_tokens` are written.
        sampled: [num_requests] int64.
        request_slots: [num_requests] int32; what padding has in the scratch slot goes nowhere.
        places: [num_requests] int32, how many drafts precede each; beyond `max_drafts` it goes
            nowhere.
    """
    if sampled.is_cuda:
        from kernels.decode_state_triton import place_drafts_triton

        place_drafts_triton(state, sampled, request_slots, places)
    else:
        place_drafts_reference(state, sampled, request_slots, places)


def place_drafts_reference(
    state: DecodeState,
    sampled: torch.Tensor,
    request_slots: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Do what `place_drafts` does in torch; also the path of the CPU."""
    is_kept = (request_slots != state.scratch_slot) & (places < state.max_drafts)
    slots, kept_places = request_slots[is_kept].long(), places[is_kept].long()
    state.draft_tokens[slots, kept_places] = sampled[is_kept]
