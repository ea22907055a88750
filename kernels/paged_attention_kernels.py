# Triton's functions have neither types nor a typed decorator.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The Triton kernels that attend; `paged_attention_triton.py` launches them.

A tile holds the rows of one request times the query heads of one KV head, so that keys and values
are read once for all of them: entry m of a tile is row `m // GROUP`, head `m % GROUP`. Softmax is
online and in base 2 (FlashAttention-2, 2307.08691, sec. 3.1).

`attend_shares` is for few rows: programs share the keys of the batch evenly, which
`paged_attention_shares.py` has more about. `attend_rows` is for many rows: one program per tile.
A kernel that overlaps the one before it reads the layout, which is older, before it waits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.paged_attention_shares import (
    first_piece_of,
    merge_parts,
    num_pieces_of,
    pieces_of_requests,
    pieces_per_program,
    with_sinks,
)

# Block numbers that are fetched at once when a program comes to a request.
FETCHED_BLOCKS = tl.constexpr(64)
# Pieces that are asked for before the kernel in front has ended.
PREFETCHED_PIECES = tl.constexpr(3)
PREFETCH = tl.constexpr(
    "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }"
)


@triton.jit
def _table_of(block_tables, table_rows, request, table_stride, HAS_TABLE_ROWS: tl.constexpr):
    """Give where a request's blocks are listed."""
    row = request
    if HAS_TABLE_ROWS:
        row = tl.load(table_rows + request)
    return block_tables + tl.cast(row, tl.int64) * table_stride


@triton.jit
def _first_blocks(table, first_key, num_keys, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Give the block of each key of a piece, and bring those of the next pieces near."""
    COUNT: tl.constexpr = FETCHED_BLOCKS if FETCHED_BLOCKS > BLOCK_N else BLOCK_N
    first_block = first_key // BLOCK_SIZE
    index = first_block + tl.arange(0, COUNT)
    num_blocks = (num_keys + BLOCK_SIZE - 1) // BLOCK_SIZE
    blocks = tl.load(table + index, mask=index < num_blocks, other=0)
    keys = first_key + tl.arange(0, BLOCK_N)
    return tl.gather(blocks, keys // BLOCK_SIZE - first_block, 0)


@triton.jit
def _prefetch_pieces(
    cache, table, kv_head, first_key, end_key, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bring the first pieces' lines of a cache into the GPU's L2, where writes still reach them."""
    LINE: tl.constexpr = 1024 // cache.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = BLOCK_D // LINE if BLOCK_D > LINE else 1
    dim = LINE * tl.arange(0, LINES)
    for piece in tl.static_range(PREFETCHED_PIECES):
        keys = first_key + piece * BLOCK_N + tl.arange(0, BLOCK_N)
        block = tl.load(table + keys // BLOCK_SIZE, mask=keys < end_key, other=0)
        line = (block.to(tl.int64) * BLOCK_SIZE + keys % BLOCK_SIZE) * KV_HEADS + kv_head
        is_wanted = (keys < end_key)[:, None] & (dim < DIM)[None, :]
        tl.inline_asm_elementwise(
            PREFETCH,
            "=r,l,r",
            [cache + line[:, None] * DIM + dim[None, :], is_wanted.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def _set_bits(masks):
    """Count the set bits of non-negative int64."""
    counts = masks - ((masks >> 1) & 0x5555555555555555)
    counts = (counts & 0x3333333333333333) + ((counts >> 2) & 0x3333333333333333)
    counts = (counts + (counts >> 4)) & 0x0F0F0F0F0F0F0F0F
    counts = counts + (counts >> 8)
    counts = counts + (counts >> 16)
    counts = counts + (counts >> 32)
    return (counts & 0x7F).to(tl.int32)


@triton.jit
def _load_tree(tree_masks, row, is_row, position, first_new, TREE: tl.constexpr):
    """Give the rows' masks and, for windows, their positions: that of the first row plus depth."""
    if TREE:
        tree = tl.load(tree_masks + row, mask=is_row, other=1)
        return tree, first_new + tl.maximum(_set_bits(tree) - 1, 0)
    else:  # noqa: RET505  Triton compiles what follows a return
        return position, position


@triton.jit
def _is_visible(
    keys, position, tree, first_new, num_keys, TREE: tl.constexpr, WINDOW: tl.constexpr
):
    """Give which keys [BLOCK_N] which entries [BLOCK_M] see."""
    if TREE:
        newness = keys - first_new
        shift = tl.minimum(tl.maximum(newness, 0), 62).to(tl.int64)
        is_marked = ((tree[:, None] >> shift[None, :]) & 1) != 0
        is_older = (newness < 0)[None, :]
        if WINDOW > 0:
            is_older = is_older & (keys[None, :] > position[:, None] - WINDOW)
        is_new = ((newness >= 0) & (keys < num_keys))[None, :]
        visible = is_older | (is_new & is_marked)
    else:
        visible = keys[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (keys[None, :] > position[:, None] - WINDOW)
    return visible


@triton.jit
def _attend_pieces(
    accumulated, maximum, total, query, position, tree, first_new, block,
    first_piece, end_piece, num_keys, table, key_cache, value_cache, kv_head, factor, cap,
    MASKED: tl.constexpr, TREE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add keys of pieces `first_piece` up to `end_piece` to what a tile has attended to.

    Blocks are looked up one piece ahead, those of the first piece by the caller: a load that waits
    for another load of the same turn would not be pipelined as deep.
    """
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_DV)
    is_dim = (dims < HEAD_DIM)[None, :]
    is_value_dim = (value_dims < VALUE_DIM)[None, :]
    keys = first_piece * BLOCK_N + tl.arange(0, BLOCK_N)
    for _ in range(first_piece, end_piece):
        if MASKED:
            is_key = keys < num_keys
            key_mask = is_key[:, None] & is_dim
            value_mask = is_key[:, None] & is_value_dim
        else:
            key_mask = is_dim
            value_mask = is_value_dim
        line = (block.to(tl.int64) * BLOCK_SIZE + keys % BLOCK_SIZE) * KV_HEADS + kv_head
        next_keys = keys + BLOCK_N
        block = tl.load(table + next_keys // BLOCK_SIZE, mask=next_keys < num_keys, other=0)
        key_pointers = key_cache + line[:, None] * HEAD_DIM + dims[None, :]
        value_pointers = value_cache + line[:, None] * VALUE_DIM + value_dims[None, :]
        if MASKED or HEAD_DIM != BLOCK_D:
            key = tl.load(key_pointers, mask=key_mask, other=0.0)
        else:
            key = tl.load(key_pointers)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * factor
        if SOFTCAP:
            scores = cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores)))  # cap * tanh
        if MASKED:
            visible = _is_visible(keys, position, tree, first_new, num_keys, TREE, WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        # Where nothing was visible yet, -inf must not be subtracted from itself.
        base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - base[:, None])
        rescale = tl.exp2(maximum - base)
        total = total * rescale + tl.sum(weights, 1)
        if MASKED or VALUE_DIM != BLOCK_DV:
            value = tl.load(value_pointers, mask=value_mask, other=0.0)
        else:
            value = tl.load(value_pointers)
        accumulated = accumulated * rescale[:, None]
        accumulated = tl.dot(
            weights.to(value.dtype), value, acc=accumulated, input_precision=PRECISION
        )
        maximum = new_maximum
        keys = next_keys
    return accumulated, maximum, total


@triton.jit
def _merge_if_last(
    output, partial_outputs, partial_maxima, partial_totals, sinks, counters,
    request, kv_head, first_row, num_rows, max_rows, first_program, last_program,
    SINKS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr, MERGE_ENTRIES: tl.constexpr, MERGE_PARTS: tl.constexpr,
):  # fmt: skip
    """Add up a request's parts once all programs that have some have written theirs.

    The counter is 0 again afterwards.
    """
    num_parts = last_program - first_program + 1
    counter = counters + request * KV_HEADS + kv_head
    tl.debug_barrier()  # one thread speaks for what all threads have written
    num_arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1
    if num_arrived == num_parts:
        tl.store(counter, 0)
        value_dims = tl.arange(0, BLOCK_DV)
        number = (first_program + request).to(tl.int64) * KV_HEADS + kv_head
        for first_entry in range(0, num_rows * GROUP, MERGE_ENTRIES):
            entry = first_entry + tl.arange(0, MERGE_ENTRIES)
            is_entry = entry < num_rows * GROUP
            head = kv_head * GROUP + entry % GROUP
            accumulated, maximum, total = merge_parts(
                partial_outputs, partial_maxima, partial_totals,
                number * (max_rows * GROUP) + entry, (KV_HEADS * GROUP) * max_rows,
                num_parts, is_entry, VALUE_DIM, BLOCK_DV, MERGE_ENTRIES, MERGE_PARTS,
            )  # fmt: skip
            merged = with_sinks(accumulated, maximum, total, sinks, head, is_entry, SINKS)
            line = (first_row + entry // GROUP).to(tl.int64) * (KV_HEADS * GROUP) + head
            tl.store(
                output + line[:, None] * VALUE_DIM + value_dims[None, :],
                merged.to(output.dtype.element_ty),
                mask=is_entry[:, None] & (value_dims < VALUE_DIM)[None, :],
            )


@triton.jit(do_not_specialize=["num_requests", "num_programs", "max_rows", "table_stride"])
def attend_shares(  # noqa: PLR0915  one kernel is one launch
    output, partial_outputs, partial_maxima, partial_totals,
    query, key_cache, value_cache, sinks, tree_masks, block_tables, table_rows, cu_seqlens_q,
    seq_lens, counters, num_requests, num_programs, max_rows, table_stride, query_stride,
    query_head_stride, factor, cap,
    SINKS: tl.constexpr, TREE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_REQUESTS: tl.constexpr, HAS_TABLE_ROWS: tl.constexpr, OVERLAPS: tl.constexpr,
    MERGE_ENTRIES: tl.constexpr, MERGE_PARTS: tl.constexpr,
):  # fmt: skip
    """Attend from all rows of requests to this program's share of the batch's keys.

    Grid: (KV_HEADS, num_programs), so that programs of neighbouring heads, whose keys lie beside
    each other, run together.
    """
    kv_head = tl.program_id(0)
    program = tl.program_id(1)
    if BLOCK_REQUESTS == 1:
        num_rows = tl.load(cu_seqlens_q + 1) - tl.load(cu_seqlens_q)
        num_pieces = num_pieces_of(tl.load(seq_lens), num_rows, WINDOW, BLOCK_N)
        share = pieces_per_program(num_pieces, num_programs)
        share_start = program * share
        share_end = tl.minimum(share_start + share, num_pieces)
        request = 0
        last_request = 0
        request_start = 0
    else:
        index = tl.arange(0, BLOCK_REQUESTS)
        pieces = pieces_of_requests(seq_lens, cu_seqlens_q, index, num_requests, WINDOW, BLOCK_N)
        ends = tl.cumsum(pieces, 0)
        num_pieces = tl.sum(pieces, 0)
        share = pieces_per_program(num_pieces, num_programs)
        share_start = program * share
        share_end = tl.minimum(share_start + share, num_pieces)
        request = tl.sum((ends <= share_start).to(tl.int32), 0)
        last_request = tl.sum((ends < share_end).to(tl.int32), 0)
        request_start = tl.max(tl.where(ends <= share_start, ends, 0), 0)
    if share_start >= share_end:
        if OVERLAPS:
            gdc_wait()
        return

    entry = tl.arange(0, BLOCK_M)
    row = entry // GROUP
    head = kv_head * GROUP + entry % GROUP
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_DV)
    for current in range(request, last_request + 1):
        first_row = tl.load(cu_seqlens_q + current)
        num_rows = tl.load(cu_seqlens_q + current + 1) - first_row
        num_keys = tl.load(seq_lens + current)
        offset = first_piece_of(num_keys, num_rows, WINDOW, BLOCK_N)
        request_end = request_start + num_pieces_of(num_keys, num_rows, WINDOW, BLOCK_N)
        start = tl.maximum(share_start, request_start)
        end = tl.minimum(share_end, request_end)
        if start < end:
            first_piece = offset + start - request_start
            table = _table_of(block_tables, table_rows, current, table_stride, HAS_TABLE_ROWS)
            block = _first_blocks(table, first_piece * BLOCK_N, num_keys, BLOCK_SIZE, BLOCK_N)
            if OVERLAPS:
                end_key = tl.minimum(num_keys, (offset + end - request_start) * BLOCK_N)
                _prefetch_pieces(
                    key_cache, table, kv_head, first_piece * BLOCK_N, end_key,
                    HEAD_DIM, BLOCK_D, KV_HEADS, BLOCK_SIZE, BLOCK_N,
                )  # fmt: skip
                _prefetch_pieces(
                    value_cache, table, kv_head, first_piece * BLOCK_N, end_key,
                    VALUE_DIM, BLOCK_DV, KV_HEADS, BLOCK_SIZE, BLOCK_N,
                )  # fmt: skip
                gdc_wait()
                gdc_launch_dependents()
            is_row = row < num_rows
            first_new = num_keys - num_rows
            position = first_new + tl.minimum(row, num_rows - 1)
            tree, position = _load_tree(
                tree_masks, first_row + row, is_row, position, first_new, TREE
            )
            loaded = tl.load(
                query + (first_row + row).to(tl.int64)[:, None] * query_stride
                + head[:, None] * query_head_stride + dims[None, :],
                mask=is_row[:, None] & (dims < HEAD_DIM)[None, :],
                other=0.0,
            )  # fmt: skip
            accumulated, maximum, total = _attend_pieces(
                tl.zeros([BLOCK_M, BLOCK_DV], tl.float32),
                tl.full([BLOCK_M], float("-inf"), tl.float32),
                tl.zeros([BLOCK_M], tl.float32),
                loaded, position, tree, first_new, block,
                first_piece, offset + end - request_start, num_keys, table,
                key_cache, value_cache, kv_head, factor, cap,
                True, TREE, WINDOW, SOFTCAP, PRECISION, KV_HEADS, BLOCK_SIZE,
                HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_N,
            )  # fmt: skip
            is_value = is_row[:, None] & (value_dims < VALUE_DIM)[None, :]
            if (start == request_start) & (end == request_end):
                attended = with_sinks(accumulated, maximum, total, sinks, head, is_row, SINKS)
                line = (first_row + row).to(tl.int64) * (KV_HEADS * GROUP) + head
                tl.store(
                    output + line[:, None] * VALUE_DIM + value_dims[None, :],
                    attended.to(output.dtype.element_ty),
                    mask=is_value,
                )
            else:
                number = (program + current).to(tl.int64) * KV_HEADS + kv_head
                line = number * (max_rows * GROUP) + entry
                tl.store(
                    partial_outputs + line[:, None] * VALUE_DIM + value_dims[None, :],
                    accumulated,
                    mask=is_value,
                )
                tl.store(partial_maxima + line, maximum, mask=is_row)
                tl.store(partial_totals + line, total, mask=is_row)
                if MERGE_PARTS > 0:
                    _merge_if_last(
                        output, partial_outputs, partial_maxima, partial_totals, sinks, counters,
                        current, kv_head, first_row, num_rows, max_rows,
                        request_start // share, (request_end - 1) // share,
                        SINKS, KV_HEADS, GROUP, VALUE_DIM, BLOCK_DV, MERGE_ENTRIES, MERGE_PARTS,
                    )  # fmt: skip
        request_start = request_end


@triton.jit(do_not_specialize=["num_requests", "table_stride"])
def attend_rows(
    output, query, key_cache, value_cache, sinks, tree_masks, block_tables, table_rows,
    cu_seqlens_q, seq_lens, num_requests, table_stride, query_stride, query_head_stride,
    factor, cap,
    SINKS: tl.constexpr, TREE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_REQUESTS: tl.constexpr, HAS_TABLE_ROWS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of rows to all of its keys.

    Grid: (KV_HEADS, num_tokens // TILE_ROWS + num_requests) with TILE_ROWS = BLOCK_M // GROUP:
    request i's tiles begin at tile `cu_seqlens_q[i] // TILE_ROWS + i`.
    """
    TILE_ROWS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    # The last tiles of a chunk see most keys and would end last.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    index = tl.arange(0, BLOCK_REQUESTS)
    starts = tl.load(cu_seqlens_q + index, mask=index < num_requests, other=0) // TILE_ROWS + index
    request = tl.sum(((index < num_requests) & (starts <= tile)).to(tl.int32), 0) - 1
    first_row = tl.load(cu_seqlens_q + request)
    num_rows = tl.load(cu_seqlens_q + request + 1) - first_row
    num_keys = tl.load(seq_lens + request)
    first_tile_row = (tile - first_row // TILE_ROWS - request) * TILE_ROWS
    if OVERLAPS:
        gdc_wait()
        gdc_launch_dependents()
    if (first_tile_row >= num_rows) | (num_keys <= 0):
        return

    entry = tl.arange(0, BLOCK_M)
    row = first_tile_row + entry // GROUP
    head = kv_head * GROUP + entry % GROUP
    is_row = (row < num_rows) & (entry < TILE_ROWS * GROUP)
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_DV)
    first_new = num_keys - num_rows
    position = first_new + tl.minimum(row, num_rows - 1)
    tree, position = _load_tree(tree_masks, first_row + row, is_row, position, first_new, TREE)
    loaded = tl.load(
        query + (first_row + row).to(tl.int64)[:, None] * query_stride
        + head[:, None] * query_head_stride + dims[None, :],
        mask=is_row[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )  # fmt: skip
    end_key = num_keys
    if not TREE:
        end_key = tl.minimum(num_keys, first_new + first_tile_row + TILE_ROWS)
    end_piece = (end_key + BLOCK_N - 1) // BLOCK_N
    # The first row of the tile has the window that begins first.
    first_piece = first_piece_of(num_keys, num_rows, WINDOW, BLOCK_N)
    if WINDOW > 0 and not TREE:
        first_piece = first_piece_of(num_keys, num_rows - first_tile_row, WINDOW, BLOCK_N)
    table = _table_of(block_tables, table_rows, request, table_stride, HAS_TABLE_ROWS)
    accumulated = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    masked_piece = first_piece
    if WINDOW == 0:
        # Pieces that every row of the tile sees whole need no masks.
        masked_piece = tl.maximum(first_new, 0) // BLOCK_N
        if not TREE:
            masked_piece = tl.maximum(first_new + first_tile_row + 1, 0) // BLOCK_N
        block = _first_blocks(table, first_piece * BLOCK_N, num_keys, BLOCK_SIZE, BLOCK_N)
        accumulated, maximum, total = _attend_pieces(
            accumulated, maximum, total, loaded, position, tree, first_new, block,
            first_piece, masked_piece, num_keys, table,
            key_cache, value_cache, kv_head, factor, cap,
            False, TREE, WINDOW, SOFTCAP, PRECISION, KV_HEADS, BLOCK_SIZE,
            HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_N,
        )  # fmt: skip
    block = _first_blocks(table, masked_piece * BLOCK_N, num_keys, BLOCK_SIZE, BLOCK_N)
    accumulated, maximum, total = _attend_pieces(
        accumulated, maximum, total, loaded, position, tree, first_new, block,
        masked_piece, end_piece, num_keys, table,
        key_cache, value_cache, kv_head, factor, cap,
        True, TREE, WINDOW, SOFTCAP, PRECISION, KV_HEADS, BLOCK_SIZE,
        HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_N,
    )  # fmt: skip
    attended = with_sinks(accumulated, maximum, total, sinks, head, is_row, SINKS)
    line = (first_row + row).to(tl.int64) * (KV_HEADS * GROUP) + head
    tl.store(
        output + line[:, None] * VALUE_DIM + value_dims[None, :],
        attended.to(output.dtype.element_ty),
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
