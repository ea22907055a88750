"""Torch's and FlashInfer's attention are called with what they ask for, or say what is missing."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import attention
from torch.nn.attention import varlen

from kernels import attention_torch
from kernels.attention_backends import AttentionKind, PassClass
from kernels.attention_choice import TrialSizes, made_up_inputs
from kernels.attention_flashinfer import FlashInferAttention
from kernels.attention_torch import TorchAttention
from kernels.paged_attention import paged_attention, paged_attention_reference
from kernels.paged_layout import HostLayout, PagedLayout

CPU = torch.device("cpu")
KIND = AttentionKind(4, 2, 16, 16)
SIZES = TrialSizes(
    num_seqs=3, num_rows=3, num_keys=18, num_prompt_tokens=66, max_seq_len=80, block_size=4,
    dtype=torch.float32, device=CPU,
)  # fmt: skip


def fake_varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """Do what torch documents, by the reference."""
    older, newer = window_size
    assert enable_gqa
    assert newer == 0
    assert max_q >= int(cu_seq_q.diff().max())
    assert max_k >= int(seqused_k.max())
    return paged_attention_reference(
        query, key, value, block_table, cu_seq_q, seqused_k,
        scaling=scale, sliding_window=None if older < 0 else older + 1, dtype=torch.float32,
    )  # fmt: skip


class FakeWrapper:
    """FlashInfer's wrapper, by the reference; counts its plans."""

    num_plans = 0

    def __init__(self, workspace: torch.Tensor, kv_layout: str) -> None:
        assert kv_layout == "NHD"
        assert workspace.dtype is torch.uint8

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        **named: Any,
    ) -> None:
        FakeWrapper.num_plans += 1
        assert (num_qo_heads, num_kv_heads, head_dim_qk) == (4, 2, 16)
        assert named["causal"]
        for tensor in (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len):
            assert tensor.dtype is torch.int32
        counts = paged_kv_indptr.diff()
        self.seq_lens = (counts - 1) * page_size + paged_kv_last_page_len
        own = paged_kv_indices.split(counts.tolist())
        self.tables = torch.nn.utils.rnn.pad_sequence(list(own), batch_first=True)
        self.bounds, self.named = qo_indptr, named

    def run(self, query: torch.Tensor, caches: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        left = self.named["window_left"]
        return paged_attention_reference(
            query, *caches, self.tables, self.bounds, self.seq_lens,
            scaling=self.named["sm_scale"], sliding_window=None if left < 0 else left + 1,
            dtype=torch.float32,
        )  # fmt: skip


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> FlashInferAttention:
    """The backend over a FlashInfer that computes by our reference."""
    module = ModuleType("flashinfer")
    module.BatchPrefillWithPagedKVCacheWrapper = FakeWrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(FakeWrapper, "num_plans", 0)
    return FlashInferAttention(CPU)


@pytest.fixture
def with_flash(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with FlashAttention 3; gives what is activated."""
    activated: list[str] = []
    monkeypatch.setattr(attention_torch, "_FLASH_PACKAGE", "json")
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: None)
    monkeypatch.setattr(attention, "activate_flash_attention_impl", activated.append)
    return activated


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("pass_class", PassClass)
def test_torch_attends_as_ours_does(
    pass_class: PassClass,
    window: int | None,
    with_flash: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen_attn)
    inputs = made_up_inputs(KIND, pass_class, SIZES)
    attended = TorchAttention().attend(*inputs, scaling=0.3, sliding_window=window)
    expected = paged_attention(*inputs, scaling=0.3, sliding_window=window)
    torch.testing.assert_close(attended, expected)
    assert with_flash == ["FA3"]


def test_torch_without_block_tables_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(query: torch.Tensor, key: torch.Tensor) -> None: ...

    monkeypatch.setattr(varlen, "varlen_attn", without)
    with pytest.raises(RuntimeError, match="has no block_table"):
        TorchAttention()


def test_torch_without_flash_attention_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen_attn)
    monkeypatch.setattr(attention_torch, "_FLASH_PACKAGE", "not_installed_anywhere")
    with pytest.raises(RuntimeError, match="not_installed_anywhere.* is not installed"):
        TorchAttention()


@pytest.mark.parametrize("window", [None, 7])
def test_flashinfer_attends_as_ours_does(
    window: int | None, flashinfer: FlashInferAttention
) -> None:
    inputs = made_up_inputs(KIND, PassClass.PREFILL, SIZES)
    attended = flashinfer.attend(*inputs, scaling=0.3, sliding_window=window)
    expected = paged_attention(*inputs, scaling=0.3, sliding_window=window)
    torch.testing.assert_close(attended, expected)


def test_flashinfer_plans_a_pass_once_for_all_layers_of_a_kind(
    flashinfer: FlashInferAttention,
) -> None:
    inputs = made_up_inputs(KIND, PassClass.PREFILL, SIZES)
    for window in (None, 7, None, 7):
        flashinfer.attend(*inputs, scaling=0.3, sliding_window=window)
    assert FakeWrapper.num_plans == 2
    *tensors, layout = made_up_inputs(KIND, PassClass.PREFILL, SIZES)
    flashinfer.attend(*tensors, layout, scaling=0.3, sliding_window=None)
    assert FakeWrapper.num_plans == 3


def test_flashinfer_finds_the_blocks_of_ragged_requests(flashinfer: FlashInferAttention) -> None:
    generator = torch.Generator().manual_seed(0)
    tables = torch.tensor([[3, 9, 9], [1, 5, 2]], dtype=torch.int32)
    host = HostLayout(
        tables, torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([4, 9], dtype=torch.int32)
    )
    layout = PagedLayout(tables, host.cu_seqlens_q, host.seq_lens, 4, 5, 3, 9, host=host)
    query = torch.randn(5, 4, 16, generator=generator)
    caches = [torch.randn(6, 4, 2, 16, generator=generator) for _ in range(2)]
    attended = flashinfer.attend(query, *caches, layout, scaling=0.3, sliding_window=None)
    # The first request has one block; what its table holds beyond is not read.
    read = tables.clone()
    read[0, 1:] = 0
    expected = paged_attention_reference(
        query, *caches, read, host.cu_seqlens_q, host.seq_lens, scaling=0.3, dtype=torch.float32
    )
    torch.testing.assert_close(attended, expected)


def test_flashinfer_that_is_absent_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ImportError):
        FlashInferAttention(CPU)
