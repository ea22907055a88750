"""Decodes without waiting for the host: an iteration is launched, and read when it is needed.

An iteration is some draft passes, a verify pass and a commit. Each finds what it needs in the state
that the one before it left on the device (`kernels/decode_state.py`), so the host can launch the
next one while it does not know yet what this one emits. It fills slots with requests, lays out rows
and reads results; which requests decode and how much they draft, the scheduler says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.progress import track

from engine.request import Request
from engine.runner.buckets import buckets_up_to
from engine.runner.device_pass import DevicePass
from engine.runner.device_queue import DeviceQueue, Mark
from engine.runner.graphs import Graphs
from engine.runner.pass_rows import PassKind, RowSpan
from engine.runner.sampling_state import SamplingState, SamplingTraits, can_sample
from engine.step import ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput
from kernels.commit import ANY_INVALID, NUM_EMITTED
from kernels.decode_state import DecodeState

# Where passes are timed: far enough into an answer that there is something to attend to.
_TIMED_TOKENS = 97


@dataclass(slots=True)
class _Slot:
    """A request's place on the device, and what the host knows of what stands there.

    Attributes:
        index: the slot.
        request: whose it is.
        num_tokens: of the request, behind the last iteration that was collected.
        block_ids: as they were handed to the device.
    """

    index: int
    request: Request
    num_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Iteration:
    """An iteration that was launched.

    Attributes:
        scheduled: the step.
        slots: one per share.
        draft_ends: leading tokens of each share that the draft has computed afterwards, where it
            computes known tokens.
        emitted: [num_requests, max_drafts + 3] int64, of the shares that sample, filled once `end`
            has passed.
        drafts: [num_slots, max_drafts] int64, what was verified, filled likewise; None where nobody
            wants to know.
        start, drafted, end: of its passes.
    """

    scheduled: SchedulerOutput
    slots: list[_Slot]
    draft_ends: dict[str, int]
    emitted: torch.Tensor
    drafts: torch.Tensor | None
    start: Mark
    drafted: Mark
    end: Mark


class DecodeLoop:
    """Runs steps whose requests need nothing of the host while they last.

    Args:
        state: what the device knows of the requests.
        sampling: how they sample.
        queue: where work is handed to the device.
        target: passes of the model that verifies.
        draft: passes of the model that drafts; None = nobody drafts here.
        draft_lags: whether the draft has keys and values of its own, which may lag.
        draft_max_len: positions that the draft knows.
    """

    def __init__(
        self,
        state: DecodeState,
        sampling: SamplingState,
        queue: DeviceQueue,
        target: DevicePass,
        draft: DevicePass | None,
        *,
        draft_lags: bool,
        draft_max_len: int,
    ) -> None:
        self._state = state
        self._sampling = sampling
        self._queue = queue
        self._target = target
        self._draft = draft
        self._draft_lags = draft_lags
        self._draft_max_len = draft_max_len
        self._slots: dict[str, _Slot] = {}
        self._is_timed: set[tuple[PassKind, tuple[RowSpan, ...]]] = set()
        self._free = list(range(state.scratch_slot))[::-1]

    def takes(self, scheduled: SchedulerOutput) -> bool:
        """Whether no share needs anything of the host while the step runs."""
        return bool(scheduled.scheduled) and all(map(self._takes, scheduled.scheduled))

    def can_join(self, request: Request) -> bool:
        """Whether a request that has no tokens under way could be part of a step."""
        return can_sample(request)

    def launch(self, scheduled: SchedulerOutput) -> Iteration:
        """Hand a step that it takes to the device."""
        shares = scheduled.scheduled
        slots = self._fill_slots(shares)
        traits = SamplingTraits.of(share.request for share in shares)
        start = self._queue.mark()
        self._place_known(shares, slots)
        draft_ends = self._launch_drafts(shares, slots, traits)
        drafted = self._queue.mark()
        spans = [target_span(*pair) for pair in zip(shares, slots, strict=True)]
        is_mixed = any(span.given is not None for span in spans)
        self._target.launch(PassKind.MIXED if is_mixed else PassKind.VERIFY, spans, traits)
        emitted = self._target.fetch(sum(share.samples for share in shares))
        wants_drafts = any(share.request.wants_provenance for share in shares)
        drafts = self._queue.fetch(self._state.draft_tokens) if wants_drafts else None
        end = self._queue.mark()
        return Iteration(scheduled, slots, draft_ends, emitted, drafts, start, drafted, end)

    def collect(self, iteration: Iteration) -> ModelOutput:
        """Wait for an iteration and read what it emitted; in the order of the launches."""
        iteration.end.wait()
        shares, rows = iteration.scheduled.scheduled, iter(iteration.emitted.tolist())
        outcomes: list[RequestOutcome] = []
        for share, slot in zip(shares, iteration.slots, strict=True):
            outcome = RequestOutcome([], share.num_draft_tokens)
            outcome.num_draft_computed_tokens = self._draft_end(share, iteration.draft_ends)
            outcomes.append(outcome)
            if not share.samples:
                continue
            row = next(rows)
            outcome.sampled = row[: row[NUM_EMITTED]]
            outcome.num_accepted_tokens = len(outcome.sampled) - 1
            slot.num_tokens += len(outcome.sampled)
            if iteration.drafts is not None and share.request.wants_provenance:
                drafted = iteration.drafts[slot.index, : share.num_draft_tokens]
                outcome.draft_token_ids = drafted.tolist()
            if row[ANY_INVALID]:
                outcome.error = share.request.reason_without_token
        return ModelOutput(outcomes)

    def seconds(self, iteration: Iteration) -> tuple[float, float]:
        """Give the device's time for a collected iteration's drafts and for its verify pass."""
        draft_seconds = iteration.drafted.seconds_since(iteration.start)
        return draft_seconds, iteration.end.seconds_since(iteration.drafted)

    @property
    def graphs(self) -> Graphs:
        """What all passes are run by."""
        return self._target.graphs

    @property
    def has_draft(self) -> bool:
        """Whether a model drafts here."""
        return self._draft is not None

    def change_rates(self, rates: Sequence[float]) -> None:
        """Let the dice accept drafts at other rates; see `kernels/synthetic_limits.py`."""
        self._target.change_rates(rates)

    def time_target(self, num_rows: Sequence[int]) -> float:
        """Give the seconds of a verify pass with so many rows per request, while nobody decodes."""
        spans = [RowSpan(slot, count - 1, count, count) for slot, count in enumerate(num_rows)]
        return self._time(self._target, PassKind.VERIFY, spans)

    def time_draft(self, num_rows: Sequence[int]) -> float:
        """Give the seconds of a draft pass with one row per request, while nobody decodes."""
        assert self._draft is not None, "a loop without a draft has no draft passes"
        spans = [RowSpan(slot, 0, 1, 1) for slot in range(len(num_rows))]
        return self._time(self._draft, PassKind.DRAFT, spans)

    def _time(self, device_pass: DevicePass, kind: PassKind, spans: Sequence[RowSpan]) -> float:
        """Time a pass in the middle of answers; its keys and values go to blocks of nobody."""
        assert not self._slots, "somebody decodes"
        state, longest = self._state, max(span.num_rows for span in spans)
        num_tokens = max(1, min(_TIMED_TOKENS, device_pass.max_seq_len - longest))

        def fill() -> None:
            state.num_tokens[: len(spans)] = num_tokens
            state.block_tables[: len(spans)] = 1

        # The first times compile and record.
        key = kind, tuple(spans)
        for _ in range(1 if key in self._is_timed else 3):
            self._queue.submit(fill)
            start = self._queue.mark()
            device_pass.launch(kind, spans, SamplingTraits())
            end = self._queue.mark()
        self._is_timed.add(key)
        end.wait()
        return end.seconds_since(start)

    def record(self, num_drafts: int) -> None:
        """Record the passes of all batches, with as many drafts for everybody or with none."""
        sizes = buckets_up_to(self._state.scratch_slot)
        for size in track(sizes, description="recording graphs", transient=True):
            for count in {0, num_drafts}:
                self._target.record(PassKind.VERIFY, size, count + 1, count)
            if self._draft is not None and num_drafts:
                if self._draft_lags:
                    self._draft.record(PassKind.FIRST_DRAFT, size, 2, 0)
                self._draft.record(PassKind.DRAFT, size, 1, 0)

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended or hold no blocks; unknown ids are fine."""
        for request_id in request_ids:
            slot = self._slots.pop(request_id, None)
            if slot is not None:
                self._free.append(slot.index)

    def _takes(self, share: ScheduledRequest) -> bool:
        needs_model = share.num_draft_tokens > 0 and share.known_draft is None
        return (
            not share.wants_prompt_logprobs
            and share.num_draft_tokens <= self._state.max_drafts
            and (self._draft is not None or not needs_model)
            and (not share.samples or can_sample(share.request))
        )

    def _fill_slots(self, shares: Sequence[ScheduledRequest]) -> list[_Slot]:
        """Give every request its slot, and hand the device what it does not know of it."""
        self._make_room(shares)
        slots: list[_Slot] = []
        entering: list[_Slot] = []
        moved: list[_Slot] = []
        for share in shares:
            request = share.request
            slot = self._slots.get(request.request_id)
            if slot is None or slot.request is not request:
                self.evict([request.request_id])
                slot = self._slots[request.request_id] = _Slot(self._free.pop(), request)
            slots.append(slot)
            if slot.num_tokens != request.num_tokens:
                slot.num_tokens = request.num_tokens
                entering.append(slot)
            if slot.block_ids != share.block_ids:
                slot.block_ids = share.block_ids
                moved.append(slot)
        if entering:
            self._enter(entering)
        if moved:
            self._move(moved)
        return slots

    def _make_room(self, shares: Sequence[ScheduledRequest]) -> None:
        """Take the slots of requests that pause, where those of a step need them."""
        present = {share.request.request_id for share in shares}
        num_lacking = len(present - self._slots.keys()) - len(self._free)
        if num_lacking > 0:
            self.evict([name for name in self._slots if name not in present][:num_lacking])

    def _enter(self, slots: Sequence[_Slot]) -> None:
        tokens = [slot.request.token_ids for slot in slots]
        rows = np.array(
            [
                [slot.index, len(ids), ids[-1], ids[-2] if len(ids) > 1 else 0]
                for slot, ids in zip(slots, tokens, strict=True)
            ],
            dtype=np.int64,
        )
        staged = self._queue.stage(rows.T.copy())
        state = self._state

        def write() -> None:
            index, num_tokens, last, prev = staged.to(state.num_tokens.device, non_blocking=True)
            state.num_tokens[index] = num_tokens
            state.last_token[index] = last
            state.prev_token[index] = prev

        self._queue.submit(write)
        self._sampling.enter([s.request for s in slots], [s.index for s in slots])

    def _move(self, slots: Sequence[_Slot]) -> None:
        """Hand over block tables, whole: no slot may name a block that it does not hold."""
        tables = self._state.block_tables
        width = max(len(slot.block_ids) for slot in slots)
        rows = np.zeros((len(slots), width + 1), dtype=np.int32)
        for row, slot in zip(rows, slots, strict=True):
            row[0] = slot.index
            row[1 : 1 + len(slot.block_ids)] = slot.block_ids
        staged = self._queue.stage(rows)

        def write() -> None:
            moved = staged.to(tables.device, non_blocking=True)
            index = moved[:, 0].long()
            if width < tables.shape[1]:
                tables[index, width:] = 0
            tables[index, :width] = moved[:, 1:]

        self._queue.submit(write)

    def _place_known(self, shares: Sequence[ScheduledRequest], slots: Sequence[_Slot]) -> None:
        """Hand over the drafts that need no model."""
        known = [
            (slot.index, share.known_draft.token_ids[: share.num_draft_tokens])
            for share, slot in zip(shares, slots, strict=True)
            if share.known_draft is not None
        ]
        if not known:
            return
        drafts = self._state.draft_tokens
        width = max(len(token_ids) for _, token_ids in known)
        rows = np.zeros((len(known), width + 1), dtype=np.int64)
        for row, (index, token_ids) in zip(rows, known, strict=True):
            row[0] = index
            row[1 : 1 + len(token_ids)] = token_ids
        staged = self._queue.stage(rows)

        def write() -> None:
            placed = staged.to(drafts.device, non_blocking=True)
            drafts[placed[:, 0], :width] = placed[:, 1:]

        self._queue.submit(write)

    def _launch_drafts(
        self,
        shares: Sequence[ScheduledRequest],
        slots: Sequence[_Slot],
        traits: SamplingTraits,
    ) -> dict[str, int]:
        """Launch the draft's passes; returns where the known tokens end that it computes."""
        draft = self._draft
        if draft is None:
            return {}
        ends: dict[str, int] = {}
        first: list[RowSpan] = []
        chains: list[tuple[int, int]] = []
        for share, slot in zip(shares, slots, strict=True):
            span = self._first_span(share, slot)
            if span is None:
                continue
            first.append(span)
            if span.given is not None:
                ends[share.request.request_id] = share.request.num_tokens + span.last_offset
            if span.num_samples:
                chains.append((slot.index, share.num_draft_tokens))
        if first:
            alone = PassKind.FIRST_DRAFT if self._draft_lags else PassKind.DRAFT
            is_mixed = any(span.given is not None for span in first)
            draft.launch(PassKind.MIXED if is_mixed else alone, first, traits)
        for offset in range(1, max((length for _, length in chains), default=0)):
            drafting = [RowSpan(slot, offset, 1, 1) for slot, length in chains if length > offset]
            draft.launch(PassKind.DRAFT, drafting, traits)
        return ends

    def _first_span(self, share: ScheduledRequest, slot: _Slot) -> RowSpan | None:
        """Give a request's rows of the draft's first pass, or None where it has none there."""
        drafts = share.num_draft_tokens > 0 and share.known_draft is None
        if not self._draft_lags:
            return RowSpan(slot.index, 0, 1, 1) if drafts else None
        if drafts and share.num_catch_up_tokens <= 1:
            return RowSpan(slot.index, 0, 2, 1)
        request = share.request
        is_followed = share.num_tokens > 1 and share.is_draft_current and not share.draft_rests
        if not (is_followed or share.num_catch_up_tokens):
            return None
        assert not share.is_ahead, "a draft that lags is caught up when its tokens are known"
        lag = request.num_computed_tokens - request.num_draft_computed_tokens
        start = share.start - lag
        end = start + share.num_catch_up_tokens
        if is_followed or drafts:
            end += share.num_tokens
        end = min(end, self._draft_max_len)
        if end <= start:
            return None
        given = request.token_ids[start:end]
        return RowSpan(slot.index, end - request.num_tokens, end - start, int(drafts), given)

    def _draft_end(self, share: ScheduledRequest, ends: dict[str, int]) -> int:
        """Give the leading tokens that the draft has computed, as if all drafts were accepted."""
        request, num_drafts = share.request, share.num_draft_tokens
        if not self._draft_lags:
            return request.num_computed_tokens + share.num_tokens + num_drafts
        if num_drafts and share.known_draft is None:
            # The last draft was sampled and not computed.
            return request.num_computed_tokens + num_drafts
        return ends.get(request.request_id, request.num_draft_computed_tokens)


def target_span(share: ScheduledRequest, slot: _Slot) -> RowSpan:
    """Give a share's rows of the target's pass."""
    num_drafts, request = share.num_draft_tokens, share.request
    if share.num_tokens == 1 and share.samples:
        return RowSpan(slot.index, num_drafts, num_drafts + 1, num_drafts + 1)
    end = share.start + share.num_tokens
    given = request.token_ids[share.start : end]
    last_offset = end - request.num_tokens
    return RowSpan(slot.index, last_offset, share.num_tokens, int(share.samples), given)
