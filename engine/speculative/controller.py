"""Chooses each request's drafts so that tokens per second rise, and none where they would not.

Every step it ranks all slots (request, draft position) by their chance to be accepted and admits
them while expected tokens per second rise (goodput: SmartSpec, 2406.14066; per slot: DSpark and
TETRIS). It weighs what passes cost (`step_costs.py`, corrected by what steps really took) against
what drafts bring (`survival.py`). How far a chain really goes, its gate decides while it is drafted
(`margin_gate.py`). Any rule is lossless under sampled verify. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.draft_planner import MAX_KNOWN_DRAFT_TOKENS, DraftPlan, DraftRoom
from engine.request import DRAFT_MODEL, Request
from engine.speculative.admission import Admission, Slot, admit
from engine.speculative.margin_gate import Exchange, MarginGate
from engine.speculative.pass_prices import PassPrices
from engine.speculative.step_costs import StepCosts
from engine.speculative.survival import ClaimedSurvival, ModelSurvival, Prospect
from engine.speculative.verifier import Hindsight, count_equal
from engine.step import KnownDraft, KnownDrafts, ModelOutput, SchedulerOutput

# A draft model that was given up is tried again after so many steps, then after twice as many.
_FIRST_PROBE_STEPS = 32
_LAST_PROBE_STEPS = 1024
_PROBE_TOKENS = 2
_MAX_PROBED = 4
# So often one request drafts further than planned, so that its chances there are known too.
_STRETCH_STEPS = 48
_STRETCH_TOKENS = 2
# A lagging draft's catch-up is paid back over about so many passes.
_CATCH_UP_PASSES = 16


class Controller:
    """Plans the drafts of each step by their expected use.

    Args:
        costs: what passes take.
        known_drafts: gives drafts that need no model.
        max_model_tokens: drafts of the draft model per pass at most; 0 = there is none.
        has_gate: whether the model's chains are ended by `gate` while they are drafted.
        hindsight: says what would have become of drafts that were known but not made.

    Attributes:
        gate: ends the chains of models.
        estimated_speedup: expected tokens per second of the last plan over those without drafts.
    """

    def __init__(
        self,
        costs: StepCosts,
        known_drafts: KnownDrafts,
        max_model_tokens: int,
        *,
        has_gate: bool = False,
        hindsight: Hindsight = count_equal,
    ) -> None:
        self._hindsight = hindsight
        self._prices = PassPrices(costs)
        self._known_drafts = known_drafts
        self._max_model_tokens = max_model_tokens if costs.draft is not None else 0
        self._models = {greedy: ModelSurvival(max_model_tokens) for greedy in (False, True)}
        self.gate = MarginGate()
        self._has_gate = has_gate
        self._claims: dict[str, ClaimedSurvival] = {}
        self._unverified: dict[str, tuple[int, KnownDraft]] = {}
        self._num_idle_steps = 0
        self._probe_steps = _FIRST_PROBE_STEPS
        self._num_drafting_steps = 0
        self.estimated_speedup = 1.0

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        """Plan; see `engine.draft_planner.DraftPlanner.plan`."""
        knowns = [self._known(room) for room in rooms]
        groups, slots = self._offers(rooms, knowns)
        admitted = admit(slots, len(rooms), self._prices, self._max_model_tokens)
        self.estimated_speedup = admitted.speed_up
        plans = self._plans(admitted, groups, rooms, knowns)
        num_rows = len(rooms) + sum(0 if p.known is None else p.num_tokens for p in plans)
        self.gate.open(Exchange(admitted.tokens_per_second, self._prices, len(rooms), num_rows))
        self._probe(rooms, plans)
        self._watch(rooms, knowns, plans)
        return plans

    def observe(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from a step: what was accepted, and what it took."""
        for share, outcome in zip(scheduled.scheduled, output.outcomes, strict=True):
            num_drafts, num_accepted = outcome.num_draft_tokens, outcome.num_accepted_tokens
            known = share.known_draft
            if not num_drafts:
                continue
            if known is None:
                survival = self._models[share.request.params.is_greedy]
                num_planned = max(share.num_draft_tokens, num_drafts)
                survival.observe(share.request.request_id, num_planned, num_drafts, num_accepted)
                self.gate.observe(share.request, num_drafts, num_accepted)
            else:
                self._claim(known.drafter).observe(known.survival[:num_drafts], num_accepted)
        self._observe_costs(scheduled, output, draft_seconds, target_seconds)

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        ended = list(request_ids)
        for survival in self._models.values():
            survival.evict(ended)
        for request_id in ended:
            self._unverified.pop(request_id, None)

    def _known(self, room: DraftRoom) -> KnownDraft | None:
        limit = min(room.num_tokens, MAX_KNOWN_DRAFT_TOKENS)
        return self._known_drafts(room.request, limit) if limit > 0 else None

    def _offers(
        self, rooms: Sequence[DraftRoom], knowns: Sequence[KnownDraft | None]
    ) -> tuple[list[list[int]], list[Slot]]:
        """Give what could be drafted: by whoever promises more, what is known or the model.

        Returns:
            Requests that are alike in groups, and the slots of all groups.
        """
        groups: list[list[int]] = []
        slots: list[Slot] = []
        alike: dict[tuple[bool, int], list[int]] = {}
        for index, (room, known) in enumerate(zip(rooms, knowns, strict=True)):
            limit = min(room.num_model_tokens, self._max_model_tokens)
            is_greedy = room.request.params.is_greedy
            claimed = [] if known is None else self._better_known(room, known, limit, len(rooms))
            if claimed:
                groups.append([index])
                slots += [
                    Slot(-chance, len(groups) - 1, place, chance, 1.0, False)
                    for place, chance in enumerate(claimed)
                ]
            elif limit and self._has_gate and _lag(room.request) <= 1:
                # Before its drafts are seen, the gate knows nothing that tells one from another.
                alike.setdefault((is_greedy, limit), []).append(index)
            elif limit:
                groups.append([index])
                prospect = self._models[is_greedy].prospect(room.request.request_id, limit)
                lag_seconds = self._lag_seconds(room.request)
                slots += _model_slots(len(groups) - 1, prospect, 1, lag_seconds)
        for (is_greedy, limit), members in alike.items():
            groups.append(members)
            prospect = self._models[is_greedy].prospect(None, limit)
            slots += _model_slots(len(groups) - 1, prospect, len(members), 0.0)
        return groups, slots

    def _better_known(
        self, room: DraftRoom, known: KnownDraft, limit: int, num_seqs: int
    ) -> list[float]:
        """Give a known draft's chances, or none where the model promises more for its price."""
        claimed = self._claim(known.drafter).survival(known.survival)
        if not limit:
            return claimed
        request = room.request
        model = self._models[request.params.is_greedy].prospect(request.request_id, limit)
        seconds = sum(model.drafted) * self._prices.draft_pass(num_seqs)
        price = seconds / self._prices.target_pass(num_seqs, num_seqs)
        return claimed if sum(claimed) >= sum(model.accepted) - price else []

    def _lag_seconds(self, request: Request) -> float:
        """Give a catch-up's share of this step, where the draft lags by more than a pass leaves."""
        lag = _lag(request)
        return self._prices.draft_pass(1) * lag / (16 * _CATCH_UP_PASSES) if lag > 1 else 0.0

    def _plans(
        self,
        admitted: Admission,
        groups: Sequence[Sequence[int]],
        rooms: Sequence[DraftRoom],
        knowns: Sequence[KnownDraft | None],
    ) -> list[DraftPlan]:
        counts = [0] * len(groups)
        is_model = [False] * len(groups)
        for slot in admitted.slots:
            counts[slot.group] += 1
            is_model[slot.group] = slot.is_model
        plans = [DraftPlan()] * len(rooms)
        for members, count, drafts in zip(groups, counts, is_model, strict=True):
            for index in members if count else ():
                room = rooms[index]
                if not drafts:
                    plans[index] = _known_plan(knowns[index], count)
                elif self._has_gate:
                    # Where a chain ends, the gate sees better than any plan.
                    limit = min(room.num_model_tokens, self._max_model_tokens)
                    plans[index] = DraftPlan(None, limit)
                else:
                    plans[index] = DraftPlan(None, count)
        return plans

    def _probe(self, rooms: Sequence[DraftRoom], plans: list[DraftPlan]) -> None:
        """Now and then try the model where it was given up, so that a change is noticed."""
        if not self._max_model_tokens:
            return
        drafting = [place for place, plan in enumerate(plans) if plan.num_model_tokens]
        if drafting:
            self._num_idle_steps, self._probe_steps = 0, _FIRST_PROBE_STEPS
            if not self._has_gate:
                self._stretch(rooms, plans, drafting)
            return
        self._num_idle_steps += 1
        if self._num_idle_steps < self._probe_steps:
            return
        self._num_idle_steps = 0
        self._probe_steps = min(2 * self._probe_steps, _LAST_PROBE_STEPS)
        idle = [place for place, plan in enumerate(plans) if not plan.num_tokens]
        for place in idle[:_MAX_PROBED]:
            plans[place] = DraftPlan(None, min(_PROBE_TOKENS, rooms[place].num_model_tokens))

    def _stretch(
        self, rooms: Sequence[DraftRoom], plans: list[DraftPlan], drafting: Sequence[int]
    ) -> None:
        self._num_drafting_steps += 1
        if self._num_drafting_steps % _STRETCH_STEPS == 0:
            place = drafting[self._num_drafting_steps // _STRETCH_STEPS % len(drafting)]
            limit = min(rooms[place].num_model_tokens, self._max_model_tokens)
            longer = plans[place].num_model_tokens + _STRETCH_TOKENS
            plans[place] = DraftPlan(None, min(longer, limit))

    def _watch(
        self,
        rooms: Sequence[DraftRoom],
        knowns: Sequence[KnownDraft | None],
        plans: Sequence[DraftPlan],
    ) -> None:
        """Compare drafts that nobody verified with what was written instead; it costs nothing."""
        for room, known, plan in zip(rooms, knowns, plans, strict=True):
            request = room.request
            seen = self._unverified.pop(request.request_id, None)
            if seen is not None:
                start, missed = seen
                claimed = missed.survival[: request.num_tokens - start]
                accepted = self._hindsight(request, start, missed.token_ids[: len(claimed)])
                self._claim(missed.drafter).observe(claimed, accepted)
            if known is not None and plan.known is None:
                self._unverified[request.request_id] = (request.num_tokens, known)

    def _observe_costs(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        shares = scheduled.scheduled
        if any(share.num_tokens > 1 or share.num_catch_up_tokens > 1 for share in shares):
            return
        num_rows = len(shares) + sum(outcome.num_draft_tokens for outcome in output.outcomes)
        lengths = [
            outcome.num_draft_tokens
            for share, outcome in zip(shares, output.outcomes, strict=True)
            if share.known_draft is None
        ]
        self._prices.observe(len(shares), num_rows, lengths, draft_seconds, target_seconds)

    def _claim(self, drafter: str) -> ClaimedSurvival:
        assert drafter != DRAFT_MODEL, "a model makes no claims"
        return self._claims.setdefault(drafter, ClaimedSurvival())


def _model_slots(
    group: int, prospect: Prospect, num_members: int, lag_seconds: float
) -> list[Slot]:
    slots: list[Slot] = []
    rank = -1.0
    for place, (chance, rows) in enumerate(zip(prospect.accepted, prospect.drafted, strict=True)):
        rank = max(rank, -chance / rows)
        tokens, share = chance * num_members, rows * num_members
        slots.append(Slot(rank, group, place, tokens, share, True, lag_seconds))
        lag_seconds = 0.0
    return slots


def _known_plan(known: KnownDraft | None, count: int) -> DraftPlan:
    assert known is not None, "a model's slots say so"
    cut = KnownDraft(known.token_ids[:count], known.drafter, known.survival[:count])
    return DraftPlan(cut)


def _lag(request: Request) -> int:
    return request.num_computed_tokens - request.num_draft_computed_tokens
