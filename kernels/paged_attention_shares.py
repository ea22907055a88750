# Triton's functions have neither types nor a typed decorator.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""How the keys of a batch are shared out, and how what was found in shares is added up; in Triton.

The keys of each request are cut into pieces of `BLOCK_N`; the pieces of the batch are one line that
programs share evenly (Stream-K, 2301.03598, sec. 4), whatever the lengths are. A request that lies
in several shares leaves partial results, numbered `program + request`, as every next one has either
the next program or the next request. They are always added up in that order (Flash-Decoding).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = tl.constexpr(1.4426950408889634)
# So many pieces are sooner attended to by one program than added up from several.
UNSHARED_PIECES = tl.constexpr(4)


@triton.jit
def pieces_of_requests(
    seq_lens, cu_seqlens_q, index, num_requests, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Give how many pieces of keys each request has; 0 where it has no rows."""
    is_request = index < num_requests
    num_keys = tl.load(seq_lens + index, mask=is_request, other=0)
    first_row = tl.load(cu_seqlens_q + index, mask=is_request, other=0)
    end_row = tl.load(cu_seqlens_q + index + 1, mask=is_request, other=0)
    return num_pieces_of(num_keys, end_row - first_row, WINDOW, BLOCK_N)


@triton.jit
def num_pieces_of(num_keys, num_rows, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Give how many pieces a request's rows attend to; 0 without rows."""
    first_piece = first_piece_of(num_keys, num_rows, WINDOW, BLOCK_N)
    pieces = (num_keys + BLOCK_N - 1) // BLOCK_N - first_piece
    return tl.where(num_rows > 0, pieces, 0)


@triton.jit
def first_piece_of(num_keys, num_rows, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Give the piece with the first key that the first row's window still holds."""
    if WINDOW > 0:
        return tl.maximum(num_keys - num_rows - WINDOW + 1, 0) // BLOCK_N
    else:  # noqa: RET505  Triton compiles what follows a return
        return num_keys * 0


@triton.jit
def pieces_per_program(num_pieces, num_programs):
    """Give the length of a share."""
    share = tl.maximum((num_pieces + num_programs - 1) // num_programs, 1)
    return tl.where(num_pieces <= UNSHARED_PIECES, tl.maximum(share, num_pieces), share)


@triton.jit
def with_sinks(accumulated, maximum, total, sinks, head, is_row, SINKS: tl.constexpr):
    """Divide by the sum of weights, the sinks' among them."""
    if SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2E
        new_maximum = tl.maximum(maximum, sink)
        rescale = tl.exp2(maximum - new_maximum)
        accumulated = accumulated * rescale[:, None]
        total = total * rescale + tl.exp2(sink - new_maximum)
    return accumulated / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def merge_parts(
    partial_outputs, partial_maxima, partial_totals, line, part_stride, num_parts, is_entry,
    VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, ENTRIES: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """Add up the parts of some entries, each entry's first part being at its line [ENTRIES]."""
    value_dims = tl.arange(0, BLOCK_DV)
    is_value_dim = value_dims < VALUE_DIM
    maximum = tl.full([ENTRIES], float("-inf"), tl.float32)
    total = tl.zeros([ENTRIES], tl.float32)
    accumulated = tl.zeros([ENTRIES, BLOCK_DV], tl.float32)
    for first_part in range(0, num_parts, BLOCK_PARTS):
        part = first_part + tl.arange(0, BLOCK_PARTS)
        lines = line[None, :] + part.to(tl.int64)[:, None] * part_stride
        is_line = (part < num_parts)[:, None] & is_entry[None, :]
        # Other multiprocessors may have written them a moment ago: past this one's own cache.
        maxima = tl.load(
            partial_maxima + lines, mask=is_line, other=float("-inf"), cache_modifier=".cg"
        )
        totals = tl.load(partial_totals + lines, mask=is_line, other=0.0, cache_modifier=".cg")
        outputs = tl.load(
            partial_outputs + lines[:, :, None] * VALUE_DIM + value_dims[None, None, :],
            mask=is_line[:, :, None] & is_value_dim[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )  # [BLOCK_PARTS, ENTRIES, BLOCK_DV]
        new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
        base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(maxima - base[None, :])
        rescale = tl.exp2(maximum - base)
        total = total * rescale + tl.sum(totals * weights, 0)
        accumulated = accumulated * rescale[:, None] + tl.sum(outputs * weights[:, :, None], 0)
        maximum = new_maximum
    return accumulated, maximum, total


@triton.jit(do_not_specialize=["num_requests", "num_programs", "max_rows"])
def merge_shares(
    output, partial_outputs, partial_maxima, partial_totals, sinks, cu_seqlens_q, seq_lens,
    num_requests, num_programs, max_rows,
    SINKS: tl.constexpr, WINDOW: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_REQUESTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Add up the partial results of HEADS heads of a row of a request that lies in several shares.

    Grid: (KV_HEADS * GROUP // HEADS, max_rows, num_requests).
    """
    row = tl.program_id(1)
    request = tl.program_id(2)
    first_row = tl.load(cu_seqlens_q + request)
    num_rows = tl.load(cu_seqlens_q + request + 1) - first_row
    if BLOCK_REQUESTS == 1:
        start = 0
        end = num_pieces_of(tl.load(seq_lens), num_rows, WINDOW, BLOCK_N)
        share = pieces_per_program(end, num_programs)
    else:
        index = tl.arange(0, BLOCK_REQUESTS)
        pieces = pieces_of_requests(seq_lens, cu_seqlens_q, index, num_requests, WINDOW, BLOCK_N)
        share = pieces_per_program(tl.sum(pieces, 0), num_programs)
        start = tl.sum(tl.where(index < request, pieces, 0), 0)
        end = start + tl.sum(tl.where(index == request, pieces, 0), 0)
    if OVERLAPS:
        gdc_wait()
        gdc_launch_dependents()
    first_program = start // share
    num_parts = (end - 1) // share - first_program + 1
    if (row >= num_rows) | (num_parts <= 1) | (start == end):
        return
    index_of_head = tl.arange(0, BLOCK_HEADS)
    is_head = index_of_head < HEADS
    head = tl.program_id(0) * HEADS + index_of_head
    value_dims = tl.arange(0, BLOCK_DV)
    line = (first_program + request).to(tl.int64) * KV_HEADS + head // GROUP
    line = (line * max_rows + row) * GROUP + head % GROUP
    accumulated, maximum, total = merge_parts(
        partial_outputs, partial_maxima, partial_totals,
        line, (KV_HEADS * GROUP) * max_rows, num_parts, is_head,
        VALUE_DIM, BLOCK_DV, BLOCK_HEADS, BLOCK_PARTS,
    )  # fmt: skip
    merged = with_sinks(accumulated, maximum, total, sinks, head, is_head, SINKS)
    output_line = (first_row + row).to(tl.int64) * (KV_HEADS * GROUP) + head
    tl.store(
        output + output_line[:, None] * VALUE_DIM + value_dims[None, :],
        merged.to(output.dtype.element_ty),
        mask=is_head[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
