"""Packing shares of a step: every token at its position and slot, and attention over its blocks."""

from __future__ import annotations

import pytest
import torch

from engine.runner.input_batch import InputBatch, Span
from kernels.paged_attention import plan_paged_attention

BLOCK_SIZE = 4
# A verify pass, a decode pass, a chunk of a prompt, the first token of another.
SPANS = [
    Span([11, 12, 13], 6, [5, 2, 9], 3),
    Span([21], 4, [7, 1], 1),
    Span(list(range(30, 39)), 0, [3, 8, 4, 6], 0),
    Span([41], 0, [10], 1),
]


def packed(spans: list[Span]) -> list[tuple[int, int, int]]:
    """Give (token, position, slot) of every token, by the definition."""
    return [
        (
            token_id,
            span.start + place,
            span.block_ids[(span.start + place) // BLOCK_SIZE] * BLOCK_SIZE
            + (span.start + place) % BLOCK_SIZE,
        )
        for span in spans
        for place, token_id in enumerate(span.token_ids)
    ]


@pytest.mark.parametrize("spans", [SPANS, SPANS[1:2], SPANS[1:4:2], SPANS[2:3]])
def test_every_token_has_its_position_and_slot(spans: list[Span]) -> None:
    batch = InputBatch(BLOCK_SIZE, 64, torch.device("cpu"))
    batch.build(SPANS[::-1])
    inputs = batch.build(spans)
    columns = (inputs.token_ids, inputs.positions, inputs.slot_mapping)
    assert all(column.dtype is torch.int64 for column in columns)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == packed(spans)


def test_rows_that_want_logits_are_the_last_of_their_spans() -> None:
    inputs = InputBatch(BLOCK_SIZE, 64, torch.device("cpu")).build(SPANS)
    assert inputs.logits_rows.tolist() == [0, 1, 2, 3, 13]


def test_attention_is_planned_as_from_tables_of_one_width() -> None:
    inputs = InputBatch(BLOCK_SIZE, 64, torch.device("cpu")).build(SPANS)
    tables = torch.zeros(len(SPANS), 6, dtype=torch.int32)
    for row, span in zip(tables, SPANS, strict=True):
        row[: len(span.block_ids)] = torch.tensor(span.block_ids)
    lengths = [len(span.token_ids) for span in SPANS]
    ends = [span.start + count for span, count in zip(SPANS, lengths, strict=True)]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    expected = plan_paged_attention(tables, bounds, torch.tensor(ends), BLOCK_SIZE)
    assert [repr(group) for group in inputs.plan.groups] == [
        repr(group) for group in expected.groups
    ]
