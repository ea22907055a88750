"""End an iteration: walk the drafts along the samples and append what is emitted.

For request i in slot s with n drafts and samples x[0..n] from row `row_starts[i]`:

    accepted = length of the longest prefix with draft_tokens[s, j] = x[j], j < n
    emitted  = draft_tokens[s, 0..accepted-1], x[accepted], which is x[0..accepted]

That is law 1 of ARCHITECTURE.md; the host's twin is `engine/speculative/verifier.py`. Where dice
decide instead, accepted is min(accepted_limits[i], n), and drafts are emitted that x disagrees
with. All that the host wants to know lies in one tensor, so that one copy brings it. Shapes: R
rows, B requests.
"""

from __future__ import annotations

import torch

from kernels.decode_state import DecodeState, OutputCounts, VerifiedRequests

# Columns of the packed result; the emitted tokens, padded with zeros, lie before them.
NUM_EMITTED = -2
ANY_INVALID = -1
NUM_COUNTS = 2


def commit(
    state: DecodeState,
    sampled: torch.Tensor,
    is_invalid: torch.Tensor,
    requests: VerifiedRequests,
    packed: torch.Tensor,
    *,
    accepted_limits: torch.Tensor | None = None,
    output_counts: OutputCounts | None = None,
) -> None:
    """Append emitted tokens to the state, and say which they are.

    Args:
        state: its tokens advance, in place; the scratch row's do not.
        sampled: [R] int64, the target's tokens.
        is_invalid: [R] bool, rows whose logits gave no token.
        requests: of the pass, no slot twice but the scratch slot.
        packed: [B, max_drafts + 3] int64, contiguous, is overwritten: emitted tokens, padded with
            zeros; then their number; then whether one of them is invalid. Padding gets zeros.
        accepted_limits: [B] int32, how many drafts are accepted, instead of those that agree.
        output_counts: what emitted tokens are added to.
    """
    if state.num_tokens.is_cuda:
        from kernels.decode_state_triton import commit_triton

        commit_triton(state, sampled, is_invalid, requests, packed, accepted_limits, output_counts)
    else:
        commit_reference(
            state, sampled, is_invalid, requests, packed, accepted_limits, output_counts
        )


def commit_reference(
    state: DecodeState,
    sampled: torch.Tensor,
    is_invalid: torch.Tensor,
    requests: VerifiedRequests,
    packed: torch.Tensor,
    accepted_limits: torch.Tensor | None = None,
    output_counts: OutputCounts | None = None,
) -> None:
    """Do what `commit` does in torch; also the path of the CPU."""
    slots, num_drafts = requests.slots.long(), requests.num_drafts.long()
    places = torch.arange(state.max_drafts + 1, device=sampled.device)
    rows = (requests.row_starts.long()[:, None] + places).clamp(max=len(sampled) - 1)
    samples = sampled[rows]  # [B, max_drafts + 1]
    if accepted_limits is None:
        agrees = samples[:, :-1] == state.draft_tokens[slots]
        agrees &= places[:-1] < num_drafts[:, None]
        num_accepted = agrees.long().cumprod(dim=1).sum(dim=1)
    else:
        num_accepted = torch.minimum(accepted_limits.long(), num_drafts)
        is_draft = places[:-1] < num_accepted[:, None]
        samples[:, :-1] = torch.where(is_draft, state.draft_tokens[slots], samples[:, :-1])

    is_request = slots != state.scratch_slot
    num_emitted = torch.where(is_request, num_accepted + 1, 0)
    is_emitted = places < num_emitted[:, None]
    emitted = torch.where(is_emitted, samples, 0)
    packed[:, :-NUM_COUNTS] = emitted
    packed[:, NUM_EMITTED] = num_emitted
    packed[:, ANY_INVALID] = (is_invalid[rows] & is_emitted).any(dim=1).long()

    old_last, old_prev = state.last_token[slots], state.prev_token[slots]
    last = samples.gather(1, num_accepted[:, None])[:, 0]
    before_last = samples.gather(1, (num_accepted[:, None] - 1).clamp(min=0))[:, 0]
    prev = torch.where(num_accepted > 0, before_last, old_last)
    state.last_token[slots] = torch.where(is_request, last, old_last)
    state.prev_token[slots] = torch.where(is_request, prev, old_prev)
    state.num_tokens.index_add_(0, slots, num_emitted)
    if output_counts is not None:
        count_rows = output_counts.rows.long()[slots]
        is_counted = is_emitted & (count_rows >= 0)[:, None]
        place = (count_rows.clamp(min=0)[:, None].expand_as(emitted), emitted)
        output_counts.counts.index_put_(place, is_counted.float(), accumulate=True)
