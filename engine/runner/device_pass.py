"""One pass of a model inside a decode loop: from the state on the device back into it.

A pass is the same work for the same shape: prepare its rows from the state of their requests, run
the model, sample, and store what was sampled as a draft, or walk the drafts and commit. Everything
that differs from call to call lies in buffers that stay where they are, so a pass can be recorded
as a graph (`graphs.py`). It knows slots and rows; requests are the loop's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from engine.model.forward import forward_packed
from engine.runner.buckets import round_up
from engine.runner.device_queue import DeviceQueue
from engine.runner.graphs import Graphs
from engine.runner.model_runner import ModelRunner
from engine.runner.pass_rows import FROM_STATE, PassKind, RowShape, RowSpan, pack, shape_of
from engine.runner.sampling_state import SamplingState, SamplingTraits
from kernels.commit import NUM_COUNTS, commit
from kernels.decode_state import DecodeState, Dice, PassInputs, PassRows, VerifiedRequests
from kernels.gumbel_sample import gumbel_sample
from kernels.paged_layout import PagedLayout
from kernels.place_drafts import place_drafts
from kernels.prepare_rows import prepare_rows
from kernels.sample_rows import SampledRows
from kernels.synthetic_limits import synthetic_limits

# Longer passes keep the device busy for longer than it takes to launch their kernels one by one.
MOST_RECORDED_ROWS = 1024

_Key = tuple[RowShape, SamplingTraits]
_Part = dict[str, torch.Tensor]


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
        verifies: whether the model's samples are emitted; else they are drafts.
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
        verifies: bool,
        dice: Dice | None = None,
    ) -> None:
        self._runner = runner
        self._state = state
        self._sampling = sampling
        self._queue = queue
        self.graphs = graphs
        self.max_seq_len = max_seq_len
        self._vocab_size = min(vocab_size, runner.loaded.vocab_size)
        self._verifies = verifies
        self._dice = dice
        device = runner.loaded.device
        max_requests = round_up(state.scratch_slot)
        rows = round_up(max_rows)
        most = RowShape(PassKind.MIXED, rows, max_requests, rows, rows).size
        self._packed_rows = torch.zeros(most, dtype=torch.int32, device=device)
        width = state.max_drafts + 1 + NUM_COUNTS
        self._packed_output = torch.zeros(max_requests, width, dtype=torch.int64, device=device)

    def launch(self, kind: PassKind, spans: Sequence[RowSpan], traits: SamplingTraits) -> None:
        """Hand a pass to the device.

        Args:
            kind: what it is for.
            spans: at least one request's rows.
            traits: of the requests' sampling.
        """
        key = self._hand_over(kind, spans, traits)
        body = partial(self._run, *key)
        if kind is PassKind.MIXED and key[0].num_rows > MOST_RECORDED_ROWS:
            self._queue.submit(body)
        else:
            self._queue.submit(partial(self.graphs.run, (id(self), key), body))

    def record(self, kind: PassKind, num_requests: int, num_rows: int, num_drafts: int) -> None:
        """Record the passes of a shape before anybody needs them, over the scratch slot alone.

        Args:
            kind: what they are for; not MIXED.
            num_requests: a bucket of requests.
            num_rows: of each.
            num_drafts: offset of each request's last row.
        """
        span = RowSpan(self._state.scratch_slot, num_drafts, num_rows, num_rows)
        for traits in (SamplingTraits(), SamplingTraits(has_noise=True)):
            key = self._hand_over(kind, [span] * num_requests, traits)
            body = partial(self._run, *key)
            self._queue.submit(partial(self.graphs.record, (id(self), key), body))

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

    def _hand_over(self, kind: PassKind, spans: Sequence[RowSpan], traits: SamplingTraits) -> _Key:
        shape = shape_of(kind, spans)
        packed = pack(shape, spans, self._state.scratch_slot)
        staged = self._queue.stage(packed)
        target = self._packed_rows[: len(packed)]
        self._queue.submit(lambda: target.copy_(staged, non_blocking=True))
        return shape, traits

    @torch.inference_mode()
    def _run(self, shape: RowShape, traits: SamplingTraits) -> None:
        part = {name: self._packed_rows[where] for name, where in shape.sections.items()}
        logits = self._forward(shape, part)
        if shape.kind in (PassKind.FIRST_DRAFT, PassKind.DRAFT):
            slots, offsets = part["request_slots"], part["last_offsets"]
        elif shape.kind is PassKind.VERIFY:
            slots, offsets = part["slots"], part["offsets"]
        else:
            slots, offsets = part["sample_slots"], part["sample_offsets"]
        rows = self._sampling.rows(self._state, slots, offsets, traits, self._vocab_size)
        sampled = gumbel_sample(logits, rows)
        if self._verifies:
            self._commit(sampled, shape, traits, part)
        else:
            place_drafts(self._state, sampled.token_ids, slots, offsets)

    def _forward(self, shape: RowShape, part: _Part) -> torch.Tensor:
        """Run the model; returns the logits that are sampled, in the model's own type."""
        loaded, storage, state = self._runner.loaded, self._runner.storage, self._state
        device = loaded.device
        like = torch.empty(shape.num_rows, dtype=torch.int64, device=device)
        seq_lens = torch.empty(shape.num_requests, dtype=torch.int32, device=device)
        inputs = PassInputs(like, torch.empty_like(like), torch.empty_like(like), seq_lens)
        prepare_rows(
            state,
            PassRows(part["slots"], part["offsets"], part["request_slots"], part["last_offsets"]),
            inputs,
            block_size=storage.block_size,
            last_token_id=loaded.vocab_size - 1,
        )
        token_ids = inputs.token_ids
        is_mixed = shape.kind is PassKind.MIXED
        if is_mixed:
            given = part["given"]
            known = given.clamp(max=loaded.vocab_size - 1).long()
            token_ids = torch.where(given == FROM_STATE, token_ids, known)
        layout = PagedLayout(
            block_tables=state.block_tables,
            cu_seqlens_q=part["bounds"],
            seq_lens=inputs.seq_lens,
            block_size=storage.block_size,
            num_tokens=shape.num_rows,
            max_query_len=shape.max_query_len,
            max_seq_len=self.max_seq_len,
            table_rows=part["request_slots"],
        )
        every = 2 if shape.kind is PassKind.FIRST_DRAFT else 1
        return forward_packed(
            loaded,
            storage,
            token_ids,
            inputs.positions,
            inputs.slot_mapping,
            layout,
            part["sample_rows"].long()
            if is_mixed
            else torch.arange(every - 1, shape.num_rows, every, device=device),
            as_float=False,
            is_padded=is_mixed,
        )

    def _commit(
        self, sampled: SampledRows, shape: RowShape, traits: SamplingTraits, part: _Part
    ) -> None:
        if shape.kind is PassKind.MIXED:
            slots, num_drafts = part["sampling_slots"], part["num_drafts"]
            starts = part["sample_starts"][:-1]
        else:
            slots, num_drafts = part["request_slots"], part["last_offsets"]
            starts = part["bounds"][:-1]
        limits: torch.Tensor | None = None
        if self._dice is not None:
            limits = torch.empty_like(num_drafts)
            synthetic_limits(
                self._dice,
                self._state.num_tokens,
                slots,
                num_drafts,
                limits,
                max_drafts=self._state.max_drafts,
            )
        commit(
            self._state,
            sampled.token_ids,
            sampled.is_invalid,
            VerifiedRequests(slots, starts, num_drafts),
            self._packed_output[: shape.num_requests],
            accepted_limits=limits,
            output_counts=self._sampling.output_counts if traits.has_penalties else None,
        )
