"""Where each query row of a step finds its keys: built once per step, used by every layer.

Where this machine has a C function for them (`paged_attention_cpu.py`), that is a list of rows.
Elsewhere, requests with few rows (decode, verify, short chunks) are batched: padded to the longest
of their length class and attended to in one call. Requests with many rows are cut into pieces of
rows, so that no mask grows with the square of the chunk. Knows block tables and lengths; refuses to
know values of keys, heads' meaning, or devices beyond where its index tensors live.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kernels.paged_attention_cpu import AttendedRows, make_attended_rows, serves

MAX_BATCHED_ROWS = 64
ROWS_PER_PIECE = 256
SHORTEST_LENGTH_CLASS = 256
# Keys of a batch are gathered before they are attended to, and masked. More than these fall out of
# a core's cache in between; long contexts are faster one by one, without a mask and, in consecutive
# blocks, read where they lie.
MOST_GATHERED_KEYS = 8192
LONG_CONTEXT = 512


@dataclass(slots=True)
class KeySpan:
    """The keys one group of rows sees under one sliding window.

    Attributes:
        first_slot: the span is `num_keys` consecutive slots from here; None = use `slots`.
        slots: [num_requests * num_keys] int64, in request order; None = consecutive.
        num_keys: keys per request, padding included.
        mask: [num_requests or 1, 1, num_rows, num_keys] bool, true where a row sees a key;
            None where every row sees all keys.
        is_causal: the mask is exactly lower triangular (rows and keys are the same tokens).
        biases: `mask` as 0 and -inf, per dtype and number of query heads per KV head.
    """

    first_slot: int | None
    slots: torch.Tensor | None
    num_keys: int
    mask: torch.Tensor | None
    is_causal: bool
    biases: dict[tuple[torch.dtype, int], torch.Tensor] = field(default_factory=dict)

    def gather(self, cache: torch.Tensor, num_requests: int) -> torch.Tensor:
        """Return the span of `cache` as [num_requests, num_keys, num_kv_heads, head_dim].

        Args:
            cache: [num_blocks, block_size, num_kv_heads, head_dim].
        """
        by_slot = cache.flatten(0, 1)
        if self.first_slot is not None:
            return by_slot.narrow(0, self.first_slot, self.num_keys).unsqueeze(0)
        assert self.slots is not None, "a span has either a first slot or a list of slots"
        gathered = by_slot.index_select(0, self.slots)
        return gathered.view(num_requests, self.num_keys, *cache.shape[2:])

    def bias(self, dtype: torch.dtype, heads_per_kv: int) -> torch.Tensor | None:
        """Return the additive mask [num_requests or 1, 1, heads_per_kv * num_rows, num_keys].

        Rows are ordered head first, as folding the query heads of one KV head gives them.
        """
        if self.mask is None:
            return None
        bias = self.biases.get((dtype, heads_per_kv))
        if bias is None:
            batch, _, rows, keys = self.mask.shape
            bias = torch.zeros(batch, 1, rows, keys, dtype=dtype, device=self.mask.device)
            bias.masked_fill_(~self.mask, float("-inf"))
            if heads_per_kv > 1:
                bias = bias.expand(batch, heads_per_kv, rows, keys)
                bias = bias.reshape(batch, 1, heads_per_kv * rows, keys)
            self.biases[dtype, heads_per_kv] = bias
        return bias


@dataclass(frozen=True, slots=True)
class RowPadding:
    """How a group's ragged rows are padded to a rectangle and put back.

    Attributes:
        padded_rows: [num_requests * num_rows] int64, the packed row behind each padded one.
        rows: [rows of the group] int64, the packed rows in group order.
        unpad: [rows of the group] int64, where each of `rows` lies among the padded ones.
    """

    padded_rows: torch.Tensor
    rows: torch.Tensor
    unpad: torch.Tensor


@dataclass(slots=True)
class RowGroup:
    """Rows that one attention call computes together.

    Attributes:
        num_requests: requests in the group, each padded to `num_rows` rows.
        num_rows: rows per request, padding included.
        first_row: first packed row of the group.
        padding: None when the group is `num_requests * num_rows` consecutive rows.
        query_lens: rows of each request.
        kv_lens: keys each request's last row may see.
        block_tables: one list of blocks per request.
        block_size: tokens per block.
        device: where index tensors go.
        spans: what has been worked out, per sliding window.
    """

    num_requests: int
    num_rows: int
    first_row: int
    padding: RowPadding | None
    query_lens: list[int]
    kv_lens: list[int]
    block_tables: list[list[int]]
    block_size: int
    device: torch.device
    spans: dict[int | None, KeySpan] = field(default_factory=dict)

    def span(self, sliding_window: int | None) -> KeySpan:
        """Return the keys the rows see, each at most the last `sliding_window` up to itself."""
        if sliding_window is not None and sliding_window >= max(self.kv_lens):
            sliding_window = None
        span = self.spans.get(sliding_window)
        if span is None:
            build = _single_span if self.num_requests == 1 else _batched_span
            span = self.spans[sliding_window] = build(self, sliding_window)
        return span


@dataclass(slots=True)
class AttentionPlan:
    """How the packed rows of one step are attended to.

    Attributes:
        num_tokens: packed query rows.
        groups: calls to make; together with `attended` they cover every row once.
        attended: rows that the C function attends from, where this machine has it.
    """

    num_tokens: int
    groups: list[RowGroup]
    attended: AttendedRows | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    first_row: int
    num_rows: int
    kv_len: int
    blocks: list[int]


def plan_paged_attention(
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> AttentionPlan:
    """Plan one step's attention; the only place that reads lengths back to the host.

    Args:
        block_tables: [num_requests, max_blocks] int32; entries beyond a request's length are
            not read. Keep it and the lengths on the CPU to spare a synchronisation.
        cu_seqlens_q: [num_requests + 1] integer, starts with 0: row ranges of the requests.
        seq_lens: [num_requests] integer, keys of each request, its own rows included.
        block_size: tokens per block.
        device: where the caches live; none = where `block_tables` lives.
        dtype: of the caches, where the C function may attend.

    Raises:
        ValueError: a request has more rows than keys, or its table is too short for its keys.
    """
    return plan_from_lists(
        block_tables.tolist(),
        cu_seqlens_q.tolist(),
        seq_lens.tolist(),
        block_size,
        device=block_tables.device if device is None else device,
        dtype=dtype,
    )


def plan_from_lists(
    block_tables: Sequence[list[int]],
    bounds: Sequence[int],
    seq_lens: Sequence[int],
    block_size: int,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> AttentionPlan:
    """Plan one step's attention from plain numbers; see `plan_paged_attention`.

    Args:
        block_tables: each request's own; they may differ in length.
        bounds: as `cu_seqlens_q`.
        seq_lens: keys of each request.
        block_size: tokens per block.
        device: where the caches live.
        dtype: as there.

    Raises:
        ValueError: as `plan_paged_attention`.
    """
    is_served = dtype is not None and device.type == "cpu" and serves(dtype)
    pieces: list[_Piece] = []
    spans: list[tuple[int, int, int]] = []
    tables: list[list[int]] = []
    for index, (kv_len, blocks) in enumerate(zip(seq_lens, block_tables, strict=True)):
        first_row = bounds[index]
        num_rows = bounds[index + 1] - first_row
        if num_rows > kv_len:
            raise ValueError(f"request {index}: {num_rows} rows exceed {kv_len} keys.")
        num_blocks = -(-kv_len // block_size)
        if num_blocks > len(blocks):
            raise ValueError(
                f"request {index}: {kv_len} keys exceed its {len(blocks)} blocks of {block_size}."
            )
        if num_rows and is_served:
            spans.append((first_row, num_rows, kv_len))
            tables.append(blocks[:num_blocks])
        elif num_rows:
            pieces += _cut(first_row, num_rows, kv_len, blocks[:num_blocks])
    attended = make_attended_rows(spans, tables, block_size) if spans else None
    groups = [_group(members, block_size, device) for members in _classes(pieces)]
    return AttentionPlan(bounds[-1], groups, attended)


def _cut(first_row: int, num_rows: int, kv_len: int, blocks: list[int]) -> list[_Piece]:
    end_row = first_row + num_rows
    if num_rows <= MAX_BATCHED_ROWS:
        return [_Piece(first_row, num_rows, kv_len, blocks)]
    pieces = []
    for start in range(first_row, end_row, ROWS_PER_PIECE):
        stop = min(start + ROWS_PER_PIECE, end_row)
        pieces.append(_Piece(start, stop - start, kv_len - (end_row - stop), blocks))
    return pieces


def _classes(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Sort pieces into batches of like length, so that padding at most quadruples the keys."""
    if len(pieces) <= 1:
        return [pieces] if pieces else []
    alone: list[list[_Piece]] = []
    classes: dict[tuple[bool, int], list[_Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.num_rows > MAX_BATCHED_ROWS or piece.kv_len >= LONG_CONTEXT:
            alone.append([piece])
            continue
        length_class = SHORTEST_LENGTH_CLASS
        while length_class < piece.kv_len:
            length_class *= 4
        classes[piece.num_rows > MAX_BATCHED_ROWS // 4, length_class].append(piece)
    return [*(part for members in classes.values() for part in _parts(members)), *alone]


def _parts(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Split pieces of like length, so that what is gathered for each part stays in the cache."""
    size = max(1, MOST_GATHERED_KEYS // max(piece.kv_len for piece in pieces))
    return [pieces[start : start + size] for start in range(0, len(pieces), size)]


def _are_consecutive(blocks: list[int]) -> bool:
    return blocks == list(range(blocks[0], blocks[0] + len(blocks)))


def _group(pieces: list[_Piece], block_size: int, device: torch.device) -> RowGroup:
    num_rows = max(piece.num_rows for piece in pieces)
    first_row = pieces[0].first_row
    is_dense = all(
        piece.num_rows == num_rows and piece.first_row == first_row + index * num_rows
        for index, piece in enumerate(pieces)
    )
    return RowGroup(
        num_requests=len(pieces),
        num_rows=num_rows,
        first_row=first_row,
        padding=None if is_dense else _padding(pieces, num_rows, device),
        query_lens=[piece.num_rows for piece in pieces],
        kv_lens=[piece.kv_len for piece in pieces],
        block_tables=[piece.blocks for piece in pieces],
        block_size=block_size,
        device=device,
    )


def _padding(pieces: list[_Piece], num_rows: int, device: torch.device) -> RowPadding:
    padded: list[int] = []
    rows: list[int] = []
    unpad: list[int] = []
    for index, piece in enumerate(pieces):
        own = list(range(piece.first_row, piece.first_row + piece.num_rows))
        padded += own + own[-1:] * (num_rows - piece.num_rows)
        unpad += range(index * num_rows, index * num_rows + piece.num_rows)
        rows += own
    return RowPadding(
        padded_rows=torch.tensor(padded, dtype=torch.int64, device=device),
        rows=torch.tensor(rows, dtype=torch.int64, device=device),
        unpad=torch.tensor(unpad, dtype=torch.int64, device=device),
    )


def _single_span(group: RowGroup, window: int | None) -> KeySpan:
    rows, kv_len, blocks = group.num_rows, group.kv_lens[0], group.block_tables[0]
    first_key = 0 if window is None else max(0, kv_len - rows - window + 1)
    num_keys = kv_len - first_key
    first_slot: int | None = None
    slots: torch.Tensor | None = None
    used = blocks[first_key // group.block_size :]
    if _are_consecutive(used):
        first_slot = used[0] * group.block_size + first_key % group.block_size
    else:
        table = torch.tensor(blocks, dtype=torch.int64, device=group.device)
        keys = torch.arange(first_key, kv_len, device=group.device)
        slots = _slots(table, keys, group.block_size)
    mask: torch.Tensor | None = None
    if rows > 1:
        mask = torch.ones(1, 1, rows, num_keys, dtype=torch.bool, device=group.device)
        mask.tril_(num_keys - rows)
        if window is not None:
            mask.triu_(num_keys - rows - window + 1)
    is_causal = rows == num_keys and window is None
    return KeySpan(first_slot, slots, num_keys, mask, is_causal)


def _batched_span(group: RowGroup, window: int | None) -> KeySpan:
    device = group.device
    kv_lens = torch.tensor(group.kv_lens, dtype=torch.int64, device=device)
    query_lens = torch.tensor(group.query_lens, dtype=torch.int64, device=device)
    first_position = kv_lens - query_lens  # [num_requests]
    first_key = torch.zeros_like(kv_lens)
    if window is not None:
        first_key = (first_position - window + 1).clamp_(min=0)
        num_keys = max(
            kv_len - max(0, kv_len - rows - window + 1)
            for kv_len, rows in zip(group.kv_lens, group.query_lens, strict=True)
        )
    else:
        num_keys = max(group.kv_lens)
    keys = first_key[:, None] + torch.arange(num_keys, device=device)  # [num_requests, num_keys]
    width = max(len(blocks) for blocks in group.block_tables)
    table = torch.tensor(
        [blocks + [0] * (width - len(blocks)) for blocks in group.block_tables],
        dtype=torch.int64,
        device=device,
    )
    # Padding reads the request's own last key, never another request's values: a masked key still
    # meets its value with weight 0, and 0 * nan would be nan.
    own_keys = torch.minimum(keys, kv_lens[:, None] - 1)
    slots = _slots(table, own_keys, group.block_size)
    rows = torch.arange(group.num_rows, device=device)
    positions = (first_position[:, None] + rows)[:, :, None]  # [num_requests, num_rows, 1]
    mask = keys[:, None, :] <= positions
    if window is not None:
        mask &= keys[:, None, :] > positions - window
    return KeySpan(None, slots.flatten(), num_keys, mask.unsqueeze(1), is_causal=False)


def _slots(table: torch.Tensor, keys: torch.Tensor, block_size: int) -> torch.Tensor:
    blocks = table.gather(-1, keys // block_size)
    return blocks * block_size + keys % block_size
