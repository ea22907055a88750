"""Which rows a pass of a decode loop computes, packed into one array for the device.

A row is a slot and an offset from the last token that its request knows, so rows can be laid out
before it is known which token that is. Shapes are rounded up to buckets; padding names the scratch
slot. Knows slots and numbers; no models, no device.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engine.runner.buckets import query_class, round_up

# Sections of the packed array begin where vector loads may.
_ALIGNMENT = 4
FROM_STATE = -1


class PassKind(enum.Enum):
    """What a pass is for.

    FIRST_DRAFT has two rows per request, of which the second samples: a draft that lags by a token
    catches up in it. DRAFT has one row per request, VERIFY one more than there are drafts, and all
    of them sample. MIXED passes have spans of known tokens, too, for the target or for a draft.
    """

    FIRST_DRAFT = enum.auto()
    DRAFT = enum.auto()
    VERIFY = enum.auto()
    MIXED = enum.auto()


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Consecutive rows of one request.

    Attributes:
        slot: of the request.
        last_offset: of the last row, from the last known token, which has offset 0.
        num_rows: at least 1.
        num_samples: trailing rows that sample.
        given: tokens of the rows, where the host has them; else they are in the slot's state.
    """

    slot: int
    last_offset: int
    num_rows: int
    num_samples: int
    given: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class RowShape:
    """The sizes of a pass, padding included.

    Attributes:
        kind: what it is for.
        num_rows: packed rows.
        num_requests: requests.
        num_samples: rows that sample.
        max_query_len: rows of a request at most.
    """

    kind: PassKind
    num_rows: int
    num_requests: int
    num_samples: int
    max_query_len: int

    @property
    def sections(self) -> dict[str, slice]:
        """Where each array lies in the packed one.

        By row: `slots`, `offsets`, `given`. By request: `request_slots`, `last_offsets`, and
        `bounds`, one more. By sample: `sample_rows`, `sample_slots`, `sample_offsets`. By request
        that samples: `sampling_slots`, `num_drafts`, and `sample_starts`, one more.
        """
        rows, requests, samples = self.num_rows, self.num_requests, self.num_samples
        lengths = {
            "slots": rows,
            "offsets": rows,
            "request_slots": requests,
            "last_offsets": requests,
            "bounds": requests + 1,
        }
        if self.kind is PassKind.MIXED:
            lengths |= {
                "given": rows,
                "sample_rows": samples,
                "sample_slots": samples,
                "sample_offsets": samples,
                "sampling_slots": requests,
                "num_drafts": requests,
                "sample_starts": requests + 1,
            }
        padded = [-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths.values()]
        starts = [0, *accumulate(padded)]
        named = zip(lengths.items(), starts, strict=False)
        return {name: slice(start, start + length) for (name, length), start in named}

    @property
    def size(self) -> int:
        """Numbers in the packed array."""
        end: int = list(self.sections.values())[-1].stop
        return -(-end // _ALIGNMENT) * _ALIGNMENT


def shape_of(kind: PassKind, spans: Sequence[RowSpan]) -> RowShape:
    """Give the shape that holds some spans."""
    num_rows = sum(span.num_rows for span in spans)
    num_requests = round_up(len(spans))
    longest = query_class(max(span.num_rows for span in spans))
    if kind is PassKind.MIXED:
        num_samples = round_up(max(1, sum(span.num_samples for span in spans)))
        return RowShape(kind, round_up(num_rows), num_requests, num_samples, longest)
    if kind is PassKind.VERIFY:
        padded = round_up(num_rows)
        return RowShape(kind, padded, num_requests, padded, longest)
    per_request = 2 if kind is PassKind.FIRST_DRAFT else 1
    return RowShape(kind, num_requests * per_request, num_requests, num_requests, longest)


def pack(shape: RowShape, spans: Sequence[RowSpan], scratch_slot: int) -> np.ndarray:
    """Pack spans.

    Args:
        shape: holds them.
        spans: in the order of their rows.
        scratch_slot: of padding.

    Returns:
        [shape.size] int32.
    """
    packed = np.zeros(shape.size, dtype=np.int32)
    part = {name: packed[where] for name, where in shape.sections.items()}
    counts = np.array([span.num_rows for span in spans], dtype=np.int32)
    own_slots = np.array([span.slot for span in spans], dtype=np.int32)
    last_offsets = np.array([span.last_offset for span in spans], dtype=np.int32)
    _fill_rows(part, "slots", "offsets", counts, own_slots, last_offsets, scratch_slot)
    part["request_slots"][:] = scratch_slot
    part["request_slots"][: len(spans)] = own_slots
    part["last_offsets"][: len(spans)] = last_offsets
    ends = np.cumsum(counts)
    part["bounds"][1:] = ends[-1]
    part["bounds"][1 : len(spans) + 1] = ends
    if shape.kind is PassKind.MIXED:
        _fill_samples(part, spans, ends, scratch_slot)
    return packed


def _fill_rows(
    part: dict[str, np.ndarray],
    slots: str,
    offsets: str,
    counts: np.ndarray,
    own_slots: np.ndarray,
    last_offsets: np.ndarray,
    scratch_slot: int,
) -> None:
    """Write slot and offset of each of a request's rows, which count up to its last offset."""
    total = int(counts.sum())
    part[slots][:] = scratch_slot
    part[slots][:total] = np.repeat(own_slots, counts)
    ends = np.cumsum(counts, dtype=np.int32)
    shifts = np.repeat(ends - 1 - last_offsets, counts)
    part[offsets][:total] = np.arange(total, dtype=np.int32) - shifts


def _fill_samples(
    part: dict[str, np.ndarray], spans: Sequence[RowSpan], ends: np.ndarray, scratch_slot: int
) -> None:
    part["given"][:] = FROM_STATE
    for span, end in zip(spans, ends.tolist(), strict=True):
        if span.given is not None:
            part["given"][end - span.num_rows : end] = span.given
    part["sampling_slots"][:] = scratch_slot
    part["sample_slots"][:] = scratch_slot
    sampling = [
        (span, end) for span, end in zip(spans, ends.tolist(), strict=True) if span.num_samples
    ]
    if not sampling:
        return
    counts = np.array([span.num_samples for span, _ in sampling], dtype=np.int32)
    own_slots = np.array([span.slot for span, _ in sampling], dtype=np.int32)
    last_offsets = np.array([span.last_offset for span, _ in sampling], dtype=np.int32)
    _fill_rows(
        part, "sample_slots", "sample_offsets", counts, own_slots, last_offsets, scratch_slot
    )
    sample_ends = np.cumsum(counts)
    last_rows = np.array([end - 1 for _, end in sampling], dtype=np.int32)
    total = int(sample_ends[-1])
    shifts = np.repeat(sample_ends - 1 - last_rows, counts)
    part["sample_rows"][:total] = np.arange(total) - shifts
    part["sampling_slots"][: len(sampling)] = own_slots
    part["num_drafts"][: len(sampling)] = last_offsets
    part["sample_starts"][1:] = total
    part["sample_starts"][1 : len(sampling) + 1] = sample_ends
