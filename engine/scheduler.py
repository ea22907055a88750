"""Chooses what each step computes and books what came of it; knows counts, no tensors.

Running requests come first: one known token for everyone that decodes, then drafts, then the
prompts that are under way; waiting requests get the rest in service order. All of it draws on
one token budget and one block pool. Background work has its turn behind everybody else; whoever
of it gets no part of a step pauses, and keeps its blocks until they are needed. It never sees the
models: `EngineCore` carries its output to the runner and the outcome back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from itertools import takewhile

from engine.background_work import BackgroundWork
from engine.config import SchedulerConfig
from engine.draft_planner import DraftPlanner
from engine.errors import InvalidRequestError
from engine.kv_cache.manager import KVCacheManager
from engine.outbox import Outbox, take_prompt_logprobs
from engine.request import FinishReason, Request, RequestDelta, RequestStatus
from engine.step import ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput
from engine.step_drafts import StepDrafts
from engine.step_in_making import StepInMaking
from engine.step_limit import StepLimit
from engine.waiting_queue import RequestQueue, ServiceOrder

# Logits of a whole prompt chunk over a large vocabulary would not fit beside the KV cache.
MAX_PROMPT_LOGPROB_ROWS = 256


class Scheduler:
    """Continuous batching with chunked prefill, speculation, priorities and preemption.

    Args:
        config: limits of one step.
        kv: the block tables.
        planner: decides the drafts of each step; None = there are none.
        draft_follows: whether a draft model has keys and values of its own in the shared blocks,
            which may lag behind and are caught up under the token budget.
        max_model_len: tokens that the target can hold per request.
        draft_max_len: tokens that the draft can hold per request; None = no limit.
        clock: seconds, monotonic; stamps requests that carry no arrival time, and their start.
        on_start: hears who is computed by each step that begins, and by one that still runs.
        can_join: whether a request can be computed in a step that is planned ahead.

    Attributes:
        requests: those that have not ended, by id.
        limit: see `StepLimit`.
        background: see `BackgroundWork`.
        num_preemptions: how often a request lost its blocks, over all requests.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCacheManager,
        *,
        planner: DraftPlanner | None,
        draft_follows: bool,
        max_model_len: int,
        draft_max_len: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_start: Callable[[set[str]], None] | None = None,
        can_join: Callable[[Request], bool] = lambda _request: True,
    ) -> None:
        self.config = config
        self.kv = kv
        self.limit = StepLimit(config.step_tokens)
        self.background = BackgroundWork(config.background_slowdown, config.max_num_seqs, clock)
        self.requests: dict[str, Request] = {}
        self.num_preemptions = 0
        self._max_model_len = max_model_len
        self._drafts = StepDrafts(
            planner,
            kv,
            follows=draft_follows,
            max_len=max_model_len if draft_max_len is None else draft_max_len,
        )
        self._clock = clock
        self._on_start = on_start
        self._can_join = can_join
        self._last_step = SchedulerOutput()
        self._order = ServiceOrder(config.priority_ageing_s)
        self._waiting = RequestQueue(self._order)
        self._running = RequestQueue(self._order)
        self._outbox = Outbox()

    @property
    def has_unfinished(self) -> bool:
        """Whether a request lives, or an end is still to be told by `update`."""
        return bool(self.requests or self._outbox)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that do not."""
        return len(self._waiting)

    def count_background(self) -> tuple[int, int]:
        """Count background work that holds blocks: what the last step computed, and what pauses."""
        computed = {share.request.request_id for share in self._last_step.scheduled}
        holding = [r.request_id in computed for r in self._running if r.is_background]
        return sum(holding), len(holding) - sum(holding)

    def add(self, request: Request) -> None:
        """Take a request in; one that can never be served ends with the next `update`.

        Raises:
            InvalidRequestError: a living request has the same id.
        """
        if request.request_id in self.requests:
            raise InvalidRequestError(
                f"request_id: {request.request_id!r} is in use; give each request its own.",
                param="request_id",
            )
        request.arrival_time = request.arrival_time or self._clock()
        request.max_total_tokens = min(request.max_total_tokens, self._max_model_len)
        self.requests[request.request_id] = request
        self._order.enter(request)
        self.background.enter(request)
        self._waiting.add(request)
        is_complete = request.num_tokens >= request.max_total_tokens
        if is_complete and not request.lacks_prompt_logprobs:
            self._end(request, FinishReason.LENGTH)
        else:
            self._fail_if_too_long(request)

    def abort(self, request_id: str) -> bool:
        """End a request wherever it is and free its blocks; False if it does not live."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._end(request, FinishReason.ABORT)
        return True

    def fail(self, request: Request, message: str) -> None:
        """End a request with an error that its caller will read; the others go on."""
        if not request.is_finished:
            self._end(request, FinishReason.ERROR, message)

    def schedule(self) -> SchedulerOutput:
        """Choose what the next step computes, now that nothing is under way."""
        for request in self._running:
            request.num_in_flight_tokens = 0
        step = self._new_step()
        for turn in self.background.turns():
            self.background.begin_turn(step, turn)
            self._decode_running(step)
            self._draft_running(step)
            step.draft_rests = self._drafts.rest
            self._prefill_running(step)
            self._admit_waiting(step)
        return self._start(step)

    def schedule_ahead(self, under_way: SchedulerOutput) -> SchedulerOutput | None:
        """Choose what follows upon a step of which no outcome is known yet.

        Every request that goes on for certain is given its next token, wherever that will be, and
        slots for as many tokens as may come before it; prompts go on and are let in as ever.

        Args:
            under_way: that step.

        Returns:
            Another such step; None where the outcome has to be known first: blocks are short, or
            drafts depend on it, or it is the turn of somebody who cannot be in such a step.
        """
        if self._outbox or self.limit.is_tight:
            return None
        step = self._new_step()
        before = {share.request.request_id: share for share in under_way.scheduled}
        for turn in self.background.turns():
            self.background.begin_turn(step, turn)
            if (
                not self._can_all_join(step, before)
                or not self._decode_ahead(step, before)
                or not self._draft_ahead(step, before)
            ):
                return None
            step.draft_rests = self._drafts.rest
            self._prefill_ahead(step, before)
            if not self._admit_waiting(step, may_preempt=False):
                return None
        return self._start(step, before) if step.shares else None

    def _new_step(self) -> StepInMaking:
        return StepInMaking(
            self.limit.num_tokens, self.config.max_num_seqs, draft_rests=self._drafts.rest
        )

    def _running_of(self, step: StepInMaking) -> list[Request]:
        """Give the running requests whose turn it is."""
        if not self.background.num_requests:
            return list(self._running)
        return [r for r in self._running if self._is_turn_of(r, step)]

    def _newcomers_of(self, step: StepInMaking) -> list[Request]:
        """Give the waiting requests whose turn it is, those in front."""
        # Those who wait for a prefix may be many; looking past two batches of them buys nothing.
        waiting = self._waiting.first(2 * self.config.max_num_seqs)
        # Background work does not overtake whoever still waits.
        mine = takewhile(lambda r: r.is_background is step.is_for_background, waiting)
        return [request for request in mine if self._is_turn_of(request, step)]

    def _is_turn_of(self, request: Request, step: StepInMaking) -> bool:
        if request.is_background is not step.is_for_background:
            return False
        # Guests who would force others to wait for the outcome of each step stay away.
        if not step.is_for_guests or self._can_join(request):
            return True
        given = [share.request for share in step.shares.values()]
        return not all(self._can_join(other) for other in given if not other.is_background)

    def _can_all_join(self, step: StepInMaking, before: dict[str, ScheduledRequest]) -> bool:
        """Whether nobody's turn comes who needs to know the outcome of each step."""
        entering = [r for r in self._running_of(step) if r.request_id not in before]
        if self._num_free_seats(step):
            entering += self._newcomers_of(step)
        return all(map(self._can_join, entering))

    def _decode_ahead(self, step: StepInMaking, before: dict[str, ScheduledRequest]) -> bool:
        """Give those their next token who will have one; False where blocks are short."""
        for request in self._running_of(step):
            share = before.get(request.request_id)
            if share is None:
                is_decoding = request.num_tokens_left == 1
            elif share.samples:
                is_decoding = True
            elif step.is_for_guests or self._goes_on(share):
                continue
            else:
                return False
            num_tokens = request.num_tokens + request.num_in_flight_tokens
            if not is_decoding or num_tokens >= request.max_total_tokens:
                continue  # it may have ended
            if step.is_for_background and step.is_full:
                break
            if not step.is_full and self.kv.allocate_slots(request, num_tokens):
                self._give(request, step, 0, is_ahead=True)
            elif not step.is_for_guests:
                return False
        return True

    def _goes_on(self, share: ScheduledRequest) -> bool:
        """Whether more of a prompt can be computed right behind a part of it."""
        is_settled = share.is_draft_current and not share.draft_rests
        return not share.samples and (is_settled or not self._drafts.follows)

    def _prefill_ahead(self, step: StepInMaking, before: dict[str, ScheduledRequest]) -> None:
        """Go on with prompts, behind the part of them that is under way."""
        for request in self._running_of(step):
            share = before.get(request.request_id)
            if step.is_full or request.request_id in step.shares:
                continue
            if share is None and request.num_tokens_left > 1:
                self._prefill(request, step)
            elif share is not None and self._goes_on(share):
                self._give(request, step, 0, share.start + share.num_tokens)

    def update(self, output: SchedulerOutput, model_output: ModelOutput) -> list[RequestDelta]:
        """Book what a step gave, and return everything there is to say since the last update."""
        if output.scheduled:
            self.limit.grow()
        for share, outcome in zip(output.scheduled, model_output.outcomes, strict=True):
            request = share.request
            request.num_in_flight_tokens -= share.num_emitted_at_most
            if request.is_finished:
                continue  # aborted while the step ran
            if outcome.error is not None:
                self.fail(request, outcome.error)
                continue
            self._book(share, outcome)
        return self._outbox.take()

    def shed(self, error: str, *, was_ahead: bool) -> None:
        """Make the next step smaller, as the last one did not fit into memory.

        Nothing of that step is booked, so all of it is computed again. The request with the most
        tokens, of background work if there is any, loses its blocks, unless it was alone; one that
        does not fit alone, token by token and without drafts, ends with an error (unless a step in
        front of it was still running).
        """
        for request in self.requests.values():
            request.num_in_flight_tokens = 0
        shares = [s for s in self._last_step.scheduled if not s.request.is_finished]
        step, self._last_step = StepInMaking(0), SchedulerOutput()
        if not shares:
            return
        by_size = [(share.request.is_background, share.request.num_tokens) for share in shares]
        largest = shares[by_size.index(max(by_size))].request
        num_tokens = SchedulerOutput(shares).num_tokens
        if num_tokens == 1 and not was_ahead:
            self.fail(largest, error)
        elif len(shares) > 1:
            self._preempt(largest, step)
        self.limit.shrink(num_tokens)

    def _start(self, step: StepInMaking, before: Collection[str] = ()) -> SchedulerOutput:
        output = self._last_step = step.output()
        for share in output.scheduled:
            share.request.num_in_flight_tokens += share.num_emitted_at_most
        if self._on_start is not None and step.shares:
            self._on_start({*step.shares, *before})
        return output

    def _decode_running(self, step: StepInMaking) -> None:
        for request in self._running_of(step):
            # Somebody before it may have taken its blocks a moment ago.
            is_decoding = request.status is RequestStatus.RUNNING and request.num_tokens_left == 1
            if is_decoding and not step.is_full and self._make_room(request, step):
                self._give(request, step, num_catch_up_tokens=0)

    def _draft_running(self, step: StepInMaking) -> None:
        if step.shares and not step.is_for_guests and self._drafts.wake():
            # A prompt that can be computed now comes before any draft.
            budget = step.budget - self._num_prompt_tokens_wanted(step)
            self._drafts.draft(step, budget)

    def _draft_ahead(self, step: StepInMaking, before: dict[str, ScheduledRequest]) -> bool:
        """Draft for a step that is planned ahead; False where that cannot be done yet."""
        if step.is_for_guests:
            return True
        if not self._drafts.can_plan_ahead([share.request for share in step.shares.values()]):
            return False
        if not step.shares:
            return True
        budget = step.budget - self._num_prompt_tokens_wanted(step)
        if budget <= 0 or not self._drafts.wake():
            return True
        return self._drafts.draft_ahead(step, before, budget)

    def _prefill_running(self, step: StepInMaking) -> None:
        for request in self._running_of(step):
            if not step.is_full and request.num_tokens_left > 1:
                self._prefill(request, step)

    def _admit_waiting(self, step: StepInMaking, *, may_preempt: bool = True) -> bool:
        """Let in who waits; False where somebody else has to lose blocks first, and may not."""
        for request in self._newcomers_of(step):
            if step.is_full or not self._num_free_seats(step) or step.took_from_likes_of(request):
                break
            if self.kv.is_prefix_pending(request):
                continue
            if not self._admit(request, step, may_preempt=may_preempt):
                is_final = may_preempt or step.is_for_guests
                return is_final or self._victim_of(request) is None
            self._prefill(request, step)
        return True

    def _num_free_seats(self, step: StepInMaking) -> int:
        """Count seats, of which background work takes none that anybody else could have."""
        num_taken = len(self._running)
        if self.background.num_requests and not step.is_for_background:
            num_taken -= sum(r.is_background for r in self._running)
        return max(0, self.config.max_num_seqs - num_taken)

    def _admit(self, request: Request, step: StepInMaking, *, may_preempt: bool) -> bool:
        while (num_cached_tokens := self.kv.admit(request)) is None:
            victim = self._victim_of(request) if may_preempt else None
            if victim is None:
                return False
            self._preempt(victim, step)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = num_cached_tokens
            request.scheduled_time = self._clock()
        request.num_computed_tokens = num_cached_tokens
        num_drafted = self.kv.num_draft_cached_tokens(request)
        request.num_draft_computed_tokens = min(num_drafted, self._drafts.max_len)
        request.status = RequestStatus.RUNNING
        self._waiting.discard(request)
        self._running.add(request)
        return True

    def _prefill(self, request: Request, step: StepInMaking) -> None:
        lag = 0 if step.draft_rests else self._drafts.lag(request)
        num_catch_up_tokens = step.take(min(lag, step.budget - 1))
        self._give(request, step, num_catch_up_tokens)

    def _give(
        self,
        request: Request,
        step: StepInMaking,
        num_catch_up_tokens: int,
        start: int | None = None,
        *,
        is_ahead: bool = False,
    ) -> None:
        start = request.num_computed_tokens if start is None else start
        num_tokens = 1 if is_ahead else request.num_tokens - start
        wants_prompt_logprobs = request.lacks_prompt_logprobs
        if wants_prompt_logprobs:
            num_tokens = min(num_tokens, MAX_PROMPT_LOGPROB_ROWS)
        step.shares[request.request_id] = ScheduledRequest(
            request=request,
            num_tokens=step.take(num_tokens),
            num_draft_tokens=0,
            num_catch_up_tokens=num_catch_up_tokens,
            block_ids=self.kv.block_ids(request),
            wants_prompt_logprobs=wants_prompt_logprobs,
            draft_rests=step.draft_rests,
            is_ahead=is_ahead,
            start=start,
        )

    def _make_room(self, request: Request, step: StepInMaking) -> bool:
        """Cover the request's known tokens, taking blocks from those behind it, or its own."""
        while not self.kv.allocate_slots(request, request.num_tokens):
            last = next(reversed(self._running))
            if last is request and step.is_for_guests:
                return False
            self._preempt(last, step)
            if last is request:
                return False
        return True

    def _victim_of(self, request: Request) -> Request | None:
        """Find the last running request that is both less important and behind this one."""
        importance = request.is_background, request.priority
        for other in reversed(self._running):
            if self._order.key(other) < self._order.key(request):
                return None
            if (other.is_background, other.priority) > importance:
                return other
        return None

    def _preempt(self, request: Request, step: StepInMaking) -> None:
        self.kv.free(request)
        request.num_computed_tokens = 0
        request.num_draft_computed_tokens = 0
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.num_preemptions += 1
        self._running.discard(request)
        self._waiting.add(request)
        step.drop(request)
        step.preempted.append(request)

    def _num_prompt_tokens_wanted(self, step: StepInMaking) -> int:
        """Count prompt tokens of those whose turn it is that this step could compute."""
        running, limit = self._running_of(step), step.budget
        wanted = sum(request.num_tokens_left for request in running if request.num_tokens_left > 1)
        num_free = self.kv.num_free_blocks * self.kv.block_size
        if not step.is_for_background:
            num_free += sum(r.num_computed_tokens for r in self._running if r.is_background)
        for request in self._newcomers_of(step)[: self._num_free_seats(step)]:
            num_free -= request.num_tokens
            if num_free < 0 or wanted >= limit:
                break
            wanted += request.num_tokens
        return min(wanted, limit)

    def _book(self, share: ScheduledRequest, outcome: RequestOutcome) -> None:
        request = share.request
        prompt_logprobs = take_prompt_logprobs(share, outcome)
        taken = request.append(outcome.sampled)
        if outcome.is_complete and not request.is_finished:
            request.finish(FinishReason.STOP)
        num_accepted = min(outcome.num_accepted_tokens, len(taken))
        request.num_computed_tokens += share.num_tokens + num_accepted
        request.num_draft_computed_tokens = min(
            outcome.num_draft_computed_tokens, request.num_computed_tokens, self._drafts.max_len
        )
        num_drafted = self._drafts.num_computed_by_both(request)
        # What a resting draft lacks must not keep others from what the target has computed.
        num_tokens = request.num_computed_tokens if share.draft_rests else num_drafted
        self.kv.publish(request, num_tokens, num_drafted)
        self._outbox.say_outcome(share, outcome, taken, prompt_logprobs)
        if request.is_finished:
            self._retire(request)
        else:
            self.kv.trim(request, request.num_tokens + request.num_in_flight_tokens)
            self._fail_if_too_long(request)

    def _fail_if_too_long(self, request: Request) -> None:
        if request.num_tokens > self.kv.capacity_tokens:
            self.fail(
                request,
                f"The request needs KV cache for {request.num_tokens} tokens, and the whole cache "
                f"holds {self.kv.capacity_tokens}; shorten the prompt, lower max_tokens, or start "
                "the engine with more kv_cache_memory.",
            )

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        request.finish(reason)
        self._retire(request)
        self._outbox.say_end(request, error)

    def _retire(self, request: Request) -> None:
        self.kv.free(request)
        self._running.discard(request)
        self._waiting.discard(request)
        self._order.leave(request)
        self.background.leave(request)
        del self.requests[request.request_id]
