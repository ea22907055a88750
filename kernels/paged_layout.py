"""Where packed query rows find their keys, as tensors on the device: what a GPU kernel reads.

Nothing here is read back from the device, so a layout can live in buffers that a CUDA graph replays
over. Knows shapes and upper bounds; `attention_plan.py` is its twin with everything on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class HostLayout:
    """What a layout holds, on the host, for those who plan there; see `PagedLayout`."""

    block_tables: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PagedLayout:
    """The rows and keys of one pass.

    Request i has the packed rows `cu_seqlens_q[i]` up to `cu_seqlens_q[i + 1]`, which are the last
    of its `seq_lens[i]` tokens. A request without rows is skipped. Rows past the last request's
    are padding: whatever is computed for them is read by nobody. No tensor here may be written by
    the very kernel that attention follows: it is read while that one may still be running.

    Attributes:
        block_tables: [num_requests or any, max_blocks] int32; entries beyond a request's keys are
            not used.
        cu_seqlens_q: [num_requests + 1] int32, starts with 0, never falls.
        seq_lens: [num_requests] int32, keys of each request, its own rows included.
        block_size: tokens per block.
        num_tokens: packed rows, padding included.
        max_query_len: no request has more rows.
        max_seq_len: no request has more keys; decides how long contexts are split.
        tree_masks: [num_tokens] int64, or None where every row sees all rows of its request up to
            itself. Bit j of a row says whether it sees the request's j-th row (of at most 63);
            all keys before the request's first row are seen in any case.
        table_rows: [num_requests] int32, row of `block_tables` of each request; None = in order.
        host: tables in the order of the requests, bounds and lengths on the host, where it knew
            them; None where a pass finds them in buffers of the device.
    """

    block_tables: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    block_size: int
    num_tokens: int
    max_query_len: int
    max_seq_len: int
    tree_masks: torch.Tensor | None = None
    table_rows: torch.Tensor | None = None
    host: HostLayout | None = None
