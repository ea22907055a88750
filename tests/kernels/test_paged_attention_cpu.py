"""The C function that attends, against the reference, and what happens where there is none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels import native_library, paged_attention_cpu
from kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    plan_paged_attention,
)
from kernels.paged_attention_cpu import serves

needs_it = pytest.mark.skipif(not serves(torch.float32), reason="no C compiler here")

BATCHES = {
    "one_key": [(1, 1)],
    "decode": [(1, 37), (1, 4), (1, 5), (1, 60)],
    "verify": [(5, 12), (3, 31), (7, 7)],
    "no_rows": [(0, 6), (2, 6), (0, 1)],
    "beside_a_prompt": [(1, 30), (60, 70), (2, 9)],
    "long": [(1, 515), (2, 513), (1, 8)],
    "prompts": [(300, 300), (150, 420), (47, 47), (48, 300)],
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 6},
    "window_of_one": {"sliding_window": 1},
    "softcap": {"softcap": 1.5},
    "sinks_window": {"sliding_window": 7, "sinks": True},
}
TOLERANCES = [
    pytest.param((torch.float32, 5e-6), id="float32"),
    pytest.param((torch.bfloat16, 2e-2), id="bfloat16"),
]
SHAPES = [(4, 2, 16, 16), (3, 3, 10, 7), (7, 1, 32, 8)]


def make(
    batch: list[tuple[int, int]], shape: tuple[int, int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Query, caches and tables; slots that nobody owns hold NaN."""
    heads, kv_heads, dim, value_dim = shape
    size = 4
    counts = [-(-keys // size) for _, keys in batch]
    blocks = torch.randperm(sum(counts)) + 1
    tables = torch.zeros(len(batch), max(counts), dtype=torch.int32)
    keys = torch.full((sum(counts) + 2, size, kv_heads, dim), float("nan"))
    values = torch.full((sum(counts) + 2, size, kv_heads, value_dim), float("nan"))
    start = 0
    for index, (count, (_, length)) in enumerate(zip(counts, batch, strict=True)):
        own = blocks[start : start + count]
        tables[index, :count] = own
        start += count
        for position in range(length):
            block = own[position // size]
            keys[block, position % size] = torch.randn(kv_heads, dim)
            values[block, position % size] = torch.randn(kv_heads, value_dim)
    rows = [rows for rows, _ in batch]
    query = torch.randn(sum(rows), heads, 2 * dim)[..., :dim]
    bounds = torch.tensor([0, *np.cumsum(rows).tolist()])
    lengths = torch.tensor([length for _, length in batch])
    return query.to(dtype), keys.to(dtype), values.to(dtype), tables, bounds, lengths


@needs_it
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", BATCHES)
def test_equals_reference(
    name: str,
    extra: str,
    tolerance: tuple[torch.dtype, float],
    num_threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtype, bound = tolerance
    if not serves(dtype):
        pytest.skip(f"not for {dtype}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    for shape in SHAPES:
        torch.manual_seed(1)
        query, keys, values, tables, bounds, lengths = make(BATCHES[name], shape, dtype)
        keywords = dict(EXTRAS[extra])
        if "sinks" in keywords:
            keywords["sinks"] = torch.randn(shape[0])
        plan = plan_paged_attention(tables, bounds, lengths, 4, dtype=dtype)
        assert plan.attended is not None
        assert not plan.groups
        ours = paged_attention(query, keys, values, plan, scaling=0.3, **keywords)
        assert ours.dtype == dtype
        expected = paged_attention_reference(
            query, keys, values, tables, bounds, lengths, scaling=0.3, **keywords
        )
        torch.testing.assert_close(ours.double(), expected, atol=bound, rtol=bound)


@needs_it
def test_nobody_depends_on_the_requests_beside() -> None:
    query, keys, values, tables, bounds, lengths = make(BATCHES["verify"], SHAPES[0], torch.float32)
    together = plan_paged_attention(tables, bounds, lengths, 4, dtype=torch.float32)
    all_rows = paged_attention(query, keys, values, together, scaling=0.3)
    for index in range(3):
        begin, end = bounds[index], bounds[index + 1]
        alone = plan_paged_attention(
            tables[index : index + 1],
            torch.tensor([0, end - begin]),
            lengths[index : index + 1],
            4,
            dtype=torch.float32,
        )
        own = paged_attention(query[begin:end], keys, values, alone, scaling=0.3)
        assert torch.equal(own, all_rows[begin:end])


@needs_it
def test_what_is_not_a_number_stays_none() -> None:
    query, keys, values, tables, bounds, lengths = make([(1, 9)], SHAPES[0], torch.float32)
    keys[tables[0, 1], 2] = float("nan")
    plan = plan_paged_attention(tables, bounds, lengths, 4, dtype=torch.float32)
    assert paged_attention(query, keys, values, plan, scaling=0.3).isnan().all()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_library.native_library.cache_clear()
    yield tmp_path
    native_library.native_library.cache_clear()


def test_without_a_compiler_there_is_none(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_library.shutil, "which", lambda _: None)
    with caplog.at_level(logging.INFO):
        assert native_library.native_library(paged_attention_cpu.SOURCE) is None
    assert "no C compiler" in caplog.text
    assert not list(fresh.iterdir())


@needs_it
def test_what_does_not_compile_is_told_and_left_out(
    fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = fresh / "broken.c"
    source.write_text("int broken( {")
    assert native_library.native_library(source) is None
    assert "broken.c" in caplog.text


@needs_it
def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_library.native_library(paged_attention_cpu.SOURCE) is not None
    (made,) = (fresh / "outdraft").iterdir()
    native_library.native_library.cache_clear()
    monkeypatch.setattr(native_library, "_compile", None)
    assert native_library.native_library(paged_attention_cpu.SOURCE) is not None
    assert list((fresh / "outdraft").iterdir()) == [made]
