"""One pass of a model inside a decode loop: from the state on the device back into it.

A pass is the same work for the same shape: prepare its rows from the state of their requests, run
the model, sample, and store what was sampled as a draft, or walk the drafts and commit. Everything
that differs from call to call lies in buffers that stay where they are, so a pass can be recorded
as a graph (`graphs.py`). It knows slots and rows; requests are the loop's business.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch

from engine.model.forward import forward_packed
from engine.runner.buckets import query_class, round_up
from engine.runner.device_queue import DeviceQueue
from engine.runner.graphs import Graphs
from engine.runner.model_runner import ModelRunner
from engine.runner.sampling_state import SamplingState, SamplingTraits
from kernels.commit import NUM_COUNTS, commit
from kernels.decode_state import DecodeState, Dice, PassInputs, PassRows, VerifiedRequests
from kernels.gumbel_sample import gumbel_sample
from kernels.paged_layout import PagedLayout
from kernels.place_drafts import place_drafts
from kernels.prepare_rows import prepare_rows
from kernels.synthetic_limits import synthetic_limits

# Sections of the packed buffer begin where vector loads may.
_ALIGNMENT = 4


class PassKind(enum.Enum):
    """What a pass is for.

    FIRST_DRAFT has two rows per request, of which the second samples: a draft that lags by a token
    catches up in it. DRAFT has one row per request, VERIFY one more than there are drafts.
    """

    FIRST_DRAFT = enum.auto()
    DRAFT = enum.auto()
    VERIFY = enum.auto()


@dataclass(frozen=True, slots=True)
class PassShape:
    """What a recorded pass is known by.

    Attributes:
        kind: what it is for.
        num_rows: packed rows, padding included.
        num_requests: requests, padding included.
        max_query_len: rows of a request at most.
        traits: what the sampler has to do.
    """

    kind: PassKind
    num_rows: int
    num_requests: int
    max_query_len: int
    traits: SamplingTraits


@dataclass(frozen=True, slots=True)
class RowsOfPass:
    """Which rows a pass computes.

    Attributes:
        kind: what it is for.
        slots: one per request.
        last_offsets: offset of each request's last row, from its last known token.
        num_rows: rows of each request.
    """

    kind: PassKind
    slots: Sequence[int]
    last_offsets: Sequence[int]
    num_rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Views:
    """Sections of the packed buffer: see `PassRows`, and the row bounds of the requests."""

    slots: torch.Tensor
    offsets: torch.Tensor
    request_slots: torch.Tensor
    last_offsets: torch.Tensor
    bounds: torch.Tensor


class DevicePass:
    """A model's passes.

    Args:
        runner: of the model.
        state: of the requests; several models share it.
        sampling: how they sample.
        queue: where passes are handed to the device.
        graphs: how they are run.
        max_rows: packed rows of a pass at most.
        max_seq_len: tokens of a request at most.
        vocab_size: of the target; wider logits are cut.
        dice: accept drafts in the target's place; None = the target does.

    Attributes:
        graphs: how they are run.
        max_seq_len: tokens of a request at most.
    """

    def __init__(
        self,
        runner: ModelRunner,
        state: DecodeState,
        sampling: SamplingState,
        queue: DeviceQueue,
        graphs: Graphs,
        *,
        max_rows: int,
        max_seq_len: int,
        vocab_size: int,
        dice: Dice | None = None,
    ) -> None:
        self._runner = runner
        self._state = state
        self._sampling = sampling
        self._queue = queue
        self.graphs = graphs
        self.max_seq_len = max_seq_len
        self._vocab_size = min(vocab_size, runner.loaded.vocab_size)
        self._dice = dice
        device = runner.loaded.device
        max_requests = round_up(state.scratch_slot)
        most = _offsets_of(round_up(max_rows), max_requests)[-1]
        self._packed_rows = torch.zeros(most, dtype=torch.int32, device=device)
        width = state.max_drafts + 1 + NUM_COUNTS
        self._packed_output = torch.zeros(max_requests, width, dtype=torch.int64, device=device)

    def launch(self, rows: RowsOfPass, traits: SamplingTraits) -> None:
        """Hand a pass to the device.

        Args:
            rows: at least one request's.
            traits: of the requests' sampling.
        """
        shape = self._hand_over(rows, traits)
        body = partial(self._run, shape)
        self._queue.submit(partial(self.graphs.run, (id(self), shape), body))

    def record(self, kind: PassKind, num_requests: int, num_rows: int, num_drafts: int) -> None:
        """Record the passes of a shape before anybody needs them, over the scratch slot alone.

        Args:
            kind: what they are for.
            num_requests: a bucket of requests.
            num_rows: of each.
            num_drafts: offset of each request's last row.
        """
        for traits in (SamplingTraits(), SamplingTraits(has_noise=True)):
            slots = [self._state.scratch_slot] * num_requests
            rows = RowsOfPass(kind, slots, [num_drafts] * num_requests, [num_rows] * num_requests)
            shape = self._hand_over(rows, traits)
            body = partial(self._run, shape)
            self._queue.submit(partial(self.graphs.record, (id(self), shape), body))

    def change_rates(self, rates: Sequence[float]) -> None:
        """Let the dice accept drafts at other rates.

        Args:
            rates: as many as there were at most; the last holds for all places beyond.
        """
        assert self._dice is not None, "somebody else accepts drafts"
        padded = [*rates, *[rates[-1]] * (len(self._dice.rates) - len(rates))]
        staged = self._queue.stage(np.array(padded))
        held = self._dice.rates
        self._queue.submit(lambda: held.copy_(staged, non_blocking=True))

    def fetch(self, num_requests: int) -> torch.Tensor:
        """Hand the host what the last verify pass emitted; see `kernels/commit.py`."""
        return self._queue.fetch(self._packed_output[:num_requests])

    def _hand_over(self, rows: RowsOfPass, traits: SamplingTraits) -> PassShape:
        shape, packed = self._pack(rows, traits)
        staged = self._queue.stage(packed)
        target = self._packed_rows[: len(packed)]
        self._queue.submit(lambda: target.copy_(staged, non_blocking=True))
        return shape

    def _pack(self, rows: RowsOfPass, traits: SamplingTraits) -> tuple[PassShape, np.ndarray]:
        num_requests, num_rows = len(rows.slots), sum(rows.num_rows)
        padded_requests = round_up(num_requests)
        per_request = 2 if rows.kind is PassKind.FIRST_DRAFT else 1
        is_verify = rows.kind is PassKind.VERIFY
        padded_rows = round_up(num_rows) if is_verify else padded_requests * per_request
        longest = query_class(max(rows.num_rows))
        shape = PassShape(rows.kind, padded_rows, padded_requests, longest, traits)
        slots, offsets, own_slots, last_offsets, bounds, end = _offsets_of(
            padded_rows, padded_requests
        )
        packed = np.zeros(end, dtype=np.int32)
        scratch = self._state.scratch_slot
        packed[slots : slots + padded_rows] = scratch
        packed[own_slots : own_slots + padded_requests] = scratch
        counts = np.asarray(rows.num_rows, dtype=np.int32)
        last = np.asarray(rows.last_offsets, dtype=np.int32)
        ends = np.cumsum(counts, dtype=np.int32)
        packed[slots : slots + num_rows] = np.repeat(rows.slots, counts)
        # A request's rows count up to its last offset.
        own_ends = np.repeat(ends - 1 - last, counts)
        packed[offsets : offsets + num_rows] = np.arange(num_rows, dtype=np.int32) - own_ends
        packed[own_slots : own_slots + num_requests] = rows.slots
        packed[last_offsets : last_offsets + num_requests] = last
        packed[bounds + 1 : bounds + 1 + num_requests] = ends
        packed[bounds + 1 + num_requests : bounds + 1 + padded_requests] = num_rows
        return shape, packed

    def _views(self, shape: PassShape) -> _Views:
        rows, requests = shape.num_rows, shape.num_requests
        *starts, _ = _offsets_of(rows, requests)
        lengths = (rows, rows, requests, requests, requests + 1)
        sections = zip(starts, lengths, strict=True)
        return _Views(*(self._packed_rows[start : start + n] for start, n in sections))

    @torch.inference_mode()
    def _run(self, shape: PassShape) -> None:
        views = self._views(shape)
        logits = self._forward(shape, views)
        if shape.kind is PassKind.VERIFY:
            self._verify(logits, shape, views)
            return
        rows = self._sampling.rows(
            self._state, views.request_slots, views.last_offsets, shape.traits, self._vocab_size
        )
        sampled = gumbel_sample(logits, rows)
        place_drafts(self._state, sampled.token_ids, views.request_slots, views.last_offsets)

    def _forward(self, shape: PassShape, views: _Views) -> torch.Tensor:
        """Run the model; returns the logits that are sampled, in the model's own type."""
        loaded, storage, state = self._runner.loaded, self._runner.storage, self._state
        device = loaded.device
        like = torch.empty(shape.num_rows, dtype=torch.int64, device=device)
        seq_lens = torch.empty(shape.num_requests, dtype=torch.int32, device=device)
        inputs = PassInputs(like, torch.empty_like(like), torch.empty_like(like), seq_lens)
        rows = PassRows(views.slots, views.offsets, views.request_slots, views.last_offsets)
        prepare_rows(
            state,
            rows,
            inputs,
            block_size=storage.block_size,
            last_token_id=loaded.vocab_size - 1,
        )
        layout = PagedLayout(
            block_tables=state.block_tables.index_select(0, views.request_slots),
            cu_seqlens_q=views.bounds,
            seq_lens=inputs.seq_lens,
            block_size=storage.block_size,
            num_tokens=shape.num_rows,
            max_query_len=shape.max_query_len,
            max_seq_len=self.max_seq_len,
        )
        every = 2 if shape.kind is PassKind.FIRST_DRAFT else 1
        logits_rows = torch.arange(every - 1, shape.num_rows, every, device=device)
        return forward_packed(
            loaded,
            storage,
            inputs.token_ids,
            inputs.positions,
            inputs.slot_mapping,
            layout,
            logits_rows,
            as_float=False,
        )

    def _verify(self, logits: torch.Tensor, shape: PassShape, views: _Views) -> None:
        rows = self._sampling.rows(
            self._state, views.slots, views.offsets, shape.traits, self._vocab_size
        )
        sampled = gumbel_sample(logits, rows)
        num_drafts = views.last_offsets
        limits: torch.Tensor | None = None
        if self._dice is not None:
            limits = torch.empty_like(num_drafts)
            synthetic_limits(
                self._dice,
                self._state.num_tokens,
                views.request_slots,
                num_drafts,
                limits,
                max_drafts=self._state.max_drafts,
            )
        commit(
            self._state,
            sampled.token_ids,
            sampled.is_invalid,
            VerifiedRequests(views.request_slots, views.bounds[:-1], num_drafts),
            self._packed_output[: shape.num_requests],
            accepted_limits=limits,
            output_counts=self._sampling.output_counts if shape.traits.has_penalties else None,
        )


def _offsets_of(num_rows: int, num_requests: int) -> list[int]:
    """Give where the sections of the packed buffer begin, and where the last one ends."""
    lengths = (num_rows, num_rows, num_requests, num_requests, num_requests + 1)
    padded = (-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths)
    return [0, *accumulate(padded)]
