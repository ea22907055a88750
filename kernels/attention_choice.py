"""Which backend attends for which layers in which passes: tried, compared and timed at start-up.

Backends are tried on made-up requests of a pass's size. One that fails, or whose result differs
from ours by more than rounding, is not chosen; among the others the fastest is. Knows no models.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from kernels.attention_backends import (
    TRITON,
    AttentionBackend,
    AttentionKind,
    PassClass,
    TritonAttention,
)
from kernels.paged_attention import AttentionPlan, paged_attention
from kernels.paged_layout import HostLayout, PagedLayout

logger = logging.getLogger(__name__)

# What a backend that does not take shapes, dtypes or this device is known to raise; FlashInfer
# compiles when it is first called.
FAILURES = (
    RuntimeError, ValueError, TypeError, AssertionError, AttributeError, KeyError,
    ImportError, OSError, subprocess.SubprocessError,
)  # fmt: skip
# Distance of a row's two results, by its length. Rounding is well below; one key too many or too
# few among a thousand is a few percent.
_TOLERANCES = {torch.bfloat16: 1.5e-2, torch.float16: 3e-3}
_TOLERANCE = 1e-3
_LONGEST_REASON = 200


class Timer(Protocol):
    """Gives the seconds of a call, recorded as a graph or as it is."""

    def __call__(self, call: Callable[[], torch.Tensor], *, is_recorded: bool) -> float: ...


Chosen = Mapping[tuple[AttentionKind, PassClass], AttentionBackend]


@dataclass(frozen=True, slots=True)
class TrialSizes:
    """What made-up requests are like.

    Attributes:
        num_seqs: requests of a decode or verify pass.
        num_rows: of each in a verify pass.
        num_keys: of each in both; more where a window is longer, so that it is crossed.
        num_prompt_tokens: computed at once of one request's prompt.
        max_seq_len: tokens of a request at most, which the passes of a decode loop are made for.
        block_size: tokens per block.
        dtype: of queries and caches.
        device: where they are.
    """

    num_seqs: int
    num_rows: int
    num_keys: int
    num_prompt_tokens: int
    max_seq_len: int
    block_size: int
    dtype: torch.dtype
    device: torch.device

    def batch(self, kind: AttentionKind, pass_class: PassClass) -> tuple[int, int, int]:
        """Give requests, rows of each and keys of each."""
        to_cross = (kind.sliding_window or 0) + 2 * self.block_size
        if pass_class is PassClass.PREFILL:
            num_rows = self.num_prompt_tokens
            return 1, num_rows, max(num_rows, min(to_cross, self.max_seq_len))
        num_keys = min(max(self.num_keys, to_cross), self.max_seq_len)
        return self.num_seqs, 1 if pass_class is PassClass.DECODE else self.num_rows, num_keys


class AttentionChoice:
    """Attends by the backend that was chosen for a call's kind of layer and its pass.

    Args:
        chosen: who was; our own kernels where nobody was.
    """

    def __init__(self, chosen: Chosen) -> None:
        others = {place: own for place, own in chosen.items() if own.name != TRITON}
        self._others = others
        self.names = {
            f"{pass_class.value} {kind}": own.name for (kind, pass_class), own in chosen.items()
        }

    @property
    def is_ours(self) -> bool:
        """Whether our own kernels were chosen everywhere."""
        return not self._others

    def attend(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        plan: AttentionPlan | PagedLayout,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Do what `paged_attention` does; see there."""
        if isinstance(plan, PagedLayout) and plan.tree_masks is None:
            kind = AttentionKind(
                query.shape[1], key_cache.shape[2], query.shape[2], value_cache.shape[3],
                sliding_window, softcap is not None, sinks is not None,
            )  # fmt: skip
            backend = self._others.get((kind, PassClass.of(plan)))
            if backend is not None and (plan.host is not None or _needs_no_host(backend)):
                return backend.attend(
                    query, key_cache, value_cache, plan,
                    scaling=scaling, sliding_window=sliding_window,
                )  # fmt: skip
        return paged_attention(
            query, key_cache, value_cache, plan,
            scaling=scaling, sliding_window=sliding_window, softcap=softcap, sinks=sinks,
        )  # fmt: skip


def choose_backends(
    others: Sequence[AttentionBackend],
    kinds: Iterable[AttentionKind],
    sizes: TrialSizes,
    timer: Timer,
    *,
    wanted: str | None = None,
) -> AttentionChoice:
    """Choose who attends in each kind of layer and pass.

    Args:
        others: backends beside our own.
        kinds: of the model's layers.
        sizes: of the passes that are tried.
        timer: gives the seconds of a call.
        wanted: who is chosen wherever it serves passes, fastest or not; None = the fastest.

    Raises:
        ValueError: who is wanted cannot serve a kind of layer; says why.
    """
    ours = TritonAttention()
    chosen: dict[tuple[AttentionKind, PassClass], AttentionBackend] = {}
    for kind in dict.fromkeys(kinds):
        able = [backend for backend in others if backend.supports(kind)]
        if wanted is not None and wanted != TRITON and all(b.name != wanted for b in able):
            raise ValueError(f"{wanted} does not serve layers like {kind}")
        for pass_class in PassClass:
            serving = [backend for backend in able if pass_class in backend.passes]
            chosen[kind, pass_class] = ours
            if serving:
                contest = _Contest(kind, pass_class, sizes, timer)
                chosen[kind, pass_class] = contest.winner(ours, serving, wanted)
    return AttentionChoice(chosen)


class _Contest:
    """Backends beside each other, in one kind of layer and pass."""

    def __init__(
        self, kind: AttentionKind, pass_class: PassClass, sizes: TrialSizes, timer: Timer
    ) -> None:
        self._place = f"{pass_class.value} {kind}"
        self._timer = timer
        self._inputs = made_up_inputs(kind, pass_class, sizes)
        self._extras = {"scaling": kind.head_dim**-0.5, "sliding_window": kind.sliding_window}

    def winner(
        self, ours: AttentionBackend, others: Sequence[AttentionBackend], wanted: str | None
    ) -> AttentionBackend:
        """Give the fastest of those that agree with ours, or who is wanted, if it does."""
        expected = self._call(ours)()
        proven: dict[AttentionBackend, float] = {}
        for backend in others:
            try:
                seconds = self._proven_seconds(backend, expected)
            except FAILURES as error:
                reason = (str(error) or type(error).__name__).split("\n")[0][:_LONGEST_REASON]
                if backend.name == wanted:
                    raise ValueError(f"{self._place}: {reason}") from error
                logger.info(
                    "attention place=%r backend=%s not_chosen=%r", self._place, backend.name, reason
                )
                continue
            if backend.name == wanted:
                return backend
            proven[backend] = seconds
        if not proven:
            return ours
        proven = {ours: self._seconds(ours), **proven}
        shown = " ".join(f"{own.name}_us={1e6 * took:.1f}" for own, took in proven.items())
        logger.info("attention place=%r %s", self._place, shown)
        return min(proven, key=lambda own: proven[own])

    def _proven_seconds(self, backend: AttentionBackend, expected: torch.Tensor) -> float:
        tolerance = _TOLERANCES.get(expected.dtype, _TOLERANCE)
        difference = _difference(self._call(backend)(), expected)
        if not difference <= tolerance:
            raise ValueError(f"differs from ours by {difference:.2g}, more than {tolerance:g}")
        return self._seconds(backend)

    def _seconds(self, backend: AttentionBackend) -> float:
        return self._timer(self._call(backend), is_recorded=_needs_no_host(backend))

    def _call(self, backend: AttentionBackend) -> Callable[[], torch.Tensor]:
        return partial(backend.attend, *self._inputs, **self._extras)


def made_up_inputs(
    kind: AttentionKind, pass_class: PassClass, sizes: TrialSizes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout]:
    """Make a query, caches and a layout, as a pass has them.

    Returns:
        query [num_tokens, H, D], key_cache and value_cache [num_blocks, block_size, Hkv, D or Dv],
        and the layout, known to the host where prompts are computed.
    """
    num_seqs, num_rows, num_keys = sizes.batch(kind, pass_class)
    own_blocks = -(-num_keys // sizes.block_size)
    generator = torch.Generator(sizes.device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=sizes.dtype, device=sizes.device)

    blocks = (num_seqs * own_blocks + 1, sizes.block_size, kind.num_kv_heads)
    order = torch.randperm(num_seqs * own_blocks, generator=torch.Generator().manual_seed(0))
    host = HostLayout(
        (order + 1).view(num_seqs, own_blocks).to(torch.int32),
        torch.arange(0, num_seqs * num_rows + 1, num_rows, dtype=torch.int32),
        torch.full((num_seqs,), num_keys, dtype=torch.int32),
    )
    is_prefill = pass_class is PassClass.PREFILL
    # A decode loop's requests have their tables in any order.
    table_rows = torch.arange(num_seqs, dtype=torch.int32, device=sizes.device).flip(0)
    layout = PagedLayout(
        host.block_tables.to(sizes.device),
        host.cu_seqlens_q.to(sizes.device),
        host.seq_lens.to(sizes.device),
        sizes.block_size,
        num_seqs * num_rows,
        num_rows,
        num_keys if is_prefill else sizes.max_seq_len,
        table_rows=None if is_prefill else table_rows,
        host=host if is_prefill else None,
    )
    query = random(num_seqs * num_rows, kind.num_heads, kind.head_dim)
    return query, random(*blocks, kind.head_dim), random(*blocks, kind.value_head_dim), layout


def _difference(attended: torch.Tensor, expected: torch.Tensor) -> float:
    if attended.shape != expected.shape:
        raise ValueError(f"gives {list(attended.shape)}, not {list(expected.shape)}")
    lengths = expected.float().norm(dim=-1)
    return float(((attended.float() - expected.float()).norm(dim=-1) / lengths).max())


def _needs_no_host(backend: AttentionBackend) -> bool:
    """Whether a backend serves passes that the host does not know, too."""
    return PassClass.DECODE in backend.passes
