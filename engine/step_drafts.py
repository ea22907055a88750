"""The drafts of a step: asks who drafts how much, and reserves blocks and budget for it; no torch.

It knows how far a draft model lags behind the target. Which requests a step computes, and how much
of its budget drafts may have, is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.draft_planner import DraftPlan, DraftPlanner, DraftRoom
from engine.kv_cache.manager import KVCacheManager
from engine.request import Request
from engine.step import ScheduledRequest
from engine.step_in_making import StepInMaking


class StepDrafts:
    """Gives drafts to the requests of a step that decode.

    Args:
        planner: decides the drafts of each step; None = there are none.
        kv: the block tables.
        follows: whether a draft model has keys and values of its own in the shared blocks, which
            may lag behind and are caught up under the token budget.
        max_len: tokens that the draft can hold per request.
    """

    def __init__(
        self,
        planner: DraftPlanner | None,
        kv: KVCacheManager,
        *,
        follows: bool,
        max_len: int,
    ) -> None:
        self.follows = follows
        self.max_len = max_len
        self._planner = planner
        self._kv = kv

    @property
    def rest(self) -> bool:
        """Whether a draft that follows was given up for now."""
        return self.follows and self._planner is not None and self._planner.draft_rests

    def wake(self) -> bool:
        """Whether the step is to be planned; asked once per step."""
        return self._planner is not None and self._planner.wakes()

    def can_plan_ahead(self, requests: Sequence[Request]) -> bool:
        """Whether drafts can be planned before the tokens in front of them are known."""
        return self._planner is None or self._planner.plans_ahead(requests)

    def lag(self, request: Request) -> int:
        """Count tokens that the target has computed and the draft has not, but can."""
        if not self.follows:
            return 0
        return min(request.num_computed_tokens, self.max_len) - request.num_draft_computed_tokens

    def num_computed_by_both(self, request: Request) -> int:
        """Count tokens that both models have computed, as far as the draft can."""
        num_draft = request.num_draft_computed_tokens
        if not self.follows or num_draft >= self.max_len:
            return request.num_computed_tokens
        return num_draft

    def draft(self, step: StepInMaking, budget: int) -> None:
        """Draft for everybody in a step, of which every token is known."""
        rooms = [self._room(share.request) for share in step.shares.values()]
        if budget <= 0 or not rooms:
            return
        for room, plan in zip(rooms, self._plan(rooms), strict=True):
            if plan.num_tokens and budget > 0:
                budget -= self._give(step, step.shares[room.request.request_id], plan, budget)

    def draft_ahead(
        self, step: StepInMaking, before: Mapping[str, ScheduledRequest], budget: int
    ) -> bool:
        """Draft for everybody in a step behind one under way; False where it cannot be done yet."""
        shares = list(step.shares.values())
        rooms = [self._room(share.request) for share in shares]
        for share, plan in zip(shares, self._plan(rooms), strict=True):
            assert plan.known is None, "who knows tokens does not plan ahead"
            num_drafts = min(plan.num_model_tokens, budget)
            if not num_drafts:
                continue
            request = share.request
            most = request.num_tokens + request.num_in_flight_tokens + num_drafts
            if self._lag_after(before.get(request.request_id), request) > 1 or (
                not self._kv.allocate_slots(request, most)
            ):
                return False
            share.draft_rests = False
            share.num_draft_tokens = step.take(num_drafts)
            share.block_ids = self._kv.block_ids(request)
            budget -= num_drafts
        return True

    def _plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        assert self._planner is not None, "nobody wakes where there is no planner"
        return self._planner.plan(rooms)

    def _give(
        self, step: StepInMaking, share: ScheduledRequest, plan: DraftPlan, budget: int
    ) -> int:
        """Schedule what was planned as far as the budget goes; returns the tokens given out."""
        request = share.request
        # Blocks first: with none to spare there is no draft, and so no reason to catch up.
        if not self._kv.allocate_slots(request, request.num_tokens + plan.num_tokens):
            return 0
        if plan.known is None:
            lag = self.lag(request)
            share.draft_rests = False
            share.num_catch_up_tokens = step.take(min(lag, budget))
            budget -= share.num_catch_up_tokens
            if share.num_catch_up_tokens < lag:
                return share.num_catch_up_tokens
        share.known_draft = plan.known
        share.num_draft_tokens = step.take(min(plan.num_tokens, budget))
        share.block_ids = self._kv.block_ids(request)
        return share.num_catch_up_tokens + share.num_draft_tokens

    def _lag_after(self, share: ScheduledRequest | None, request: Request) -> int:
        """Give the draft's lag behind a share: one at most where it drafted or followed."""
        lag = self.lag(request)
        if share is None or not self.follows:
            return lag
        is_followed = share.num_tokens > 1 and share.is_draft_current and not share.draft_rests
        if share.num_draft_tokens or is_followed:
            return 1
        return lag - share.num_catch_up_tokens + share.num_tokens

    def _room(self, request: Request) -> DraftRoom:
        asked = request.params.max_draft_tokens
        # A pass emits one token more than it drafts; the draft computes one token less.
        num_known = request.num_tokens + request.num_in_flight_tokens
        num_useful = request.max_total_tokens - num_known - 1
        num_tokens = max(0, num_useful if asked is None else min(asked, num_useful))
        num_held = self.max_len - num_known + 1
        return DraftRoom(request, num_tokens, max(0, min(num_tokens, num_held)))
