"""Chooses each request's drafts so that tokens per second rise, and none where they would not.

Every step it ranks all slots (request, draft position) by their chance to be accepted and admits
them while expected tokens per second rise (goodput: SmartSpec, 2406.14066; per slot: DSpark and
TETRIS). It weighs what passes cost (`step_costs.py`, corrected by what steps really took) against
what drafts bring (`survival.py`). How far a chain really goes, its gate decides while it is drafted
(`margin_gate.py`). Any rule is lossless under sampled verify. Knows no tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.draft_planner import MAX_KNOWN_DRAFT_TOKENS, DraftPlan, DraftRoom
from engine.request import Request
from engine.speculative.admission import GAIN_TO_STAY, LEAST_GAIN, Admission, Slot, admit
from engine.speculative.claims import Claims, Weighed
from engine.speculative.host_times import Drafting
from engine.speculative.margin_gate import Exchange, MarginGate
from engine.speculative.pass_prices import Chains, PassPrices
from engine.speculative.probes import Probe, Probes
from engine.speculative.slots import chain_slot, known_slots, model_slots
from engine.speculative.step_costs import StepCosts
from engine.speculative.survival import ChainEnd, ModelSurvival, Prospect
from engine.speculative.verifier import Hindsight, count_equal
from engine.step import (
    KnownDraft,
    KnownDrafts,
    ModelOutput,
    RequestOutcome,
    ScheduledRequest,
    SchedulerOutput,
)

_Kind = tuple[bool, bool]
"""Whether a request is greedy, and whether the last draft of it was rejected: what follows upon a
rejection is as hard to guess as what led to it."""

_Outcome = tuple[ScheduledRequest, RequestOutcome]

_MOST_OBSERVED = 4
# A lagging draft's catch-up is paid back over about so many passes.
_CATCH_UP_PASSES = 16
# Tokens that a pass of one request takes in for the price of one.
_TOKENS_PER_PASS = 16
# Where nobody knows anything of the text, what was decided for all holds for so many steps.
_HOLD_STEPS = 4
# Where nothing was drafted nor known for a while, only every so many steps are planned, and later
# even fewer.
_SLEEP_STEPS, _DEEP_SLEEP_STEPS = 4, 16
_OTHER_DECISIONS = 16
_SLEEP_AFTER_STEPS, _DEEP_SLEEP_AFTER_STEPS = 32, 96


@dataclass(slots=True)
class _Group:
    """Requests that are alike, so that one decision holds for all.

    Attributes:
        members: places among the step's requests.
        known: what they verify; None where a model drafts.
    """

    members: list[int]
    known: KnownDraft | None = None


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
        self._prices = PassPrices(costs)
        self._known_drafts = known_drafts
        self._max_model_tokens = max_model_tokens if costs.draft is not None else 0
        self._models = _models(max_model_tokens)
        self._free_models = _models(max_model_tokens) if has_gate else self._models
        self._rejected: set[str] = set()
        self.gate = MarginGate()
        self._has_gate = has_gate
        self._claims = Claims(hindsight)
        self._probes = Probes(self._max_model_tokens, has_gate=has_gate)
        self._is_free = False
        self._exchange: Exchange | None = None
        self._expected_pass_seconds = 0.0
        self._drafts: bool | None = None
        self._held_counts: dict[_Kind, int] | None = None
        self._pays_without_lag = True
        self._num_held_steps = 0
        self._is_awake = self._is_watched = True
        self._num_silent_steps = 0
        self._num_slept_steps = 0
        self._num_observed = 0
        self._num_decisions = 0
        self.estimated_speedup = 1.0

    @property
    def is_watching(self) -> bool:
        """Whether `observe` and `observe_host` want to hear of this step: of sleep, one in many."""
        return self._is_watched

    @property
    def draft_rests(self) -> bool:
        """See `engine.draft_planner.DraftPlanner`."""
        return self._probes.has_given_up and not self._pays_without_lag

    def wakes(self) -> bool:
        """See `engine.draft_planner.DraftPlanner.wakes`."""
        probes = self._probes
        if probes.rests():
            self._is_awake, self._is_watched = False, probes.is_rest_over
            return False
        self._is_awake = self._is_watched = True
        is_silent = self._num_silent_steps >= _SLEEP_AFTER_STEPS
        if is_silent and probes.has_given_up and not probes.is_trying:
            is_deep = self._num_silent_steps >= _DEEP_SLEEP_AFTER_STEPS
            most = _DEEP_SLEEP_STEPS if is_deep else _SLEEP_STEPS
            self._num_slept_steps = (self._num_slept_steps + 1) % most
            self._is_awake = self._num_slept_steps == 0
            self._is_watched = self._num_slept_steps <= 1
            if not self._is_awake:
                probes.sleep()
        return self._is_awake

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        """Plan; see `engine.draft_planner.DraftPlanner.plan`."""
        said = [self._said(room) for room in rooms]
        is_anything_said = any(said)
        is_decided = is_anything_said or not self._holds(len(rooms))
        if is_decided:
            plans = self._decide(rooms, said)
        else:
            plans = [self._held_plan(room) for room in rooms]
        probe = self._probes.add_to(rooms, plans)
        is_free = probe is Probe.FREE or (probe is Probe.NOTHING and self._is_free)
        is_listening = probe is not Probe.NOTHING or not self._is_free
        self.gate.open(None if is_free else self._exchange, is_listening=is_listening)
        is_gated = probe is Probe.GATED or (is_decided and not is_free)
        self._expected_pass_seconds = (
            self._expect_passes(rooms, plans) if is_gated and self._has_gate else 0.0
        )
        if is_anything_said or self._num_silent_steps == 0:
            for room, drafts, plan in zip(rooms, said, plans, strict=True):
                self._claims.watch(room.request, drafts, plan.known)
        self._num_silent_steps = 0 if is_anything_said else self._num_silent_steps + 1
        return plans

    def observe(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from a step: what was accepted, and what it took."""
        if not self.is_watching:
            return
        pairs = list(zip(scheduled.scheduled, output.outcomes, strict=True))
        drafted = [pair for pair in pairs if pair[0].num_draft_tokens]
        # Of a large batch a part says enough, and another part each time.
        self._num_observed += 1
        every = -(-len(drafted) // _MOST_OBSERVED)
        for place, (share, outcome) in enumerate(drafted):
            if (place + self._num_observed) % every == 0:
                self._observe_drafts(share, outcome)
            if outcome.num_accepted_tokens < outcome.num_draft_tokens:
                self._rejected.add(share.request.request_id)
            elif outcome.num_draft_tokens:
                self._rejected.discard(share.request.request_id)
        self._observe_costs(pairs, draft_seconds, target_seconds)

    def observe_host(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        host_seconds: float,
    ) -> None:
        """Learn what a step took beside its passes, now that it is over.

        Steps without drafts count where they are as they would be had the model been given up.
        """
        shares, outcomes = scheduled.scheduled, output.outcomes
        has_drafts = any(outcome.num_draft_tokens for outcome in outcomes)
        if not any(map(_catches_up, shares)) and (has_drafts or self._is_like_rest):
            drafting = self._drafting if has_drafts else Drafting.NONE
            self._prices.host.observe(len(shares), host_seconds, drafting)

    @property
    def _drafting(self) -> Drafting:
        """How this step drafts, if it does."""
        return self._way(is_free=self.gate.is_open)

    def _way(self, *, is_free: bool) -> Drafting:
        return Drafting.GATED if self._has_gate and not is_free else Drafting.FREE

    @property
    def _is_like_rest(self) -> bool:
        """Whether a step without drafts is like those of a rest: the first one is slower."""
        return not self._is_awake or not self._max_model_tokens or self._probes.has_given_up

    def survival(self, share: ScheduledRequest, num_drafts: int) -> list[float]:
        """Give what is thought of a share's first drafts until the step is observed.

        Returns:
            For each the chance to be accepted with all before it: by their margins where a gate saw
            them, else by what became of others.
        """
        if share.known_draft is not None:
            return self._claims.survival(share.known_draft)[:num_drafts]
        request = share.request
        by_margin = self.gate.survival(request, num_drafts)
        if by_margin is not None:
            return by_margin
        models = self._free_models if self.gate.is_open else self._models
        model = models[self._kind(request)]
        return model.prospect_of(request.request_id, num_drafts).accepted

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        ended = list(request_ids)
        for survival in (*self._models.values(), *self._free_models.values()):
            survival.evict(ended)
        self._claims.evict(ended)
        self._rejected.difference_update(ended)

    def _observe_drafts(self, share: ScheduledRequest, outcome: RequestOutcome) -> None:
        num_drafts, num_accepted = outcome.num_draft_tokens, outcome.num_accepted_tokens
        request = share.request
        if share.known_draft is not None:
            self._claims.observe(share.known_draft, num_drafts, num_accepted)
        elif num_drafts or self._has_gate:
            end = ChainEnd(share.num_draft_tokens, self._num_drafted(share, outcome), num_drafts)
            self.gate.observe(request, num_drafts, num_accepted)
            # Drafts that all count teach the gate, and say nothing of chains that it ends.
            kind = self._kind(request)
            models = self._free_models if self.gate.is_open else self._models
            models[kind].observe(request.request_id, end, num_accepted)
            if num_drafts and not self.gate.is_open:
                # The first draft knew of no gate yet.
                first = ChainEnd(1, 1, 1)
                self._free_models[kind].observe(request.request_id, first, min(num_accepted, 1))

    def _num_drafted(self, share: ScheduledRequest, outcome: RequestOutcome) -> int:
        """Give a chain's length, what its gate dropped included."""
        return max(outcome.num_draft_tokens, self.gate.num_drafted(share.request))

    def _said(self, room: DraftRoom) -> list[KnownDraft]:
        limit = min(room.num_tokens, MAX_KNOWN_DRAFT_TOKENS)
        return self._known_drafts(room.request, limit) if limit > 0 else []

    def _holds(self, num_seqs: int) -> bool:
        """Whether what was decided for all holds on: nobody knows anything new."""
        last = self._exchange
        is_alike = self._drafts is not None or self._held_counts is not None
        if not is_alike or last is None or last.num_seqs != num_seqs:
            return False
        self._num_held_steps = (self._num_held_steps + 1) % _HOLD_STEPS
        return self._num_held_steps > 0

    def _decide(
        self, rooms: Sequence[DraftRoom], said: Sequence[Sequence[KnownDraft]]
    ) -> list[DraftPlan]:
        least_gain = GAIN_TO_STAY if self._drafts else LEAST_GAIN
        groups, slots = self._offers(rooms, said, is_free=False)
        admitted = self._admit(slots, len(rooms), least_gain)
        self._is_free = False
        if self._has_gate and self._max_model_tokens:
            # Chains of one length waste drafts, and cost less: no batch is padded for them.
            free_groups, free_slots = self._offers(rooms, said, is_free=True)
            free = self._admit(free_slots, len(rooms), least_gain, is_free=True)
            is_better = free.tokens_per_second > admitted.tokens_per_second
            self._num_decisions += 1
            if free.slots and admitted.slots and self._num_decisions % _OTHER_DECISIONS == 0:
                # The other way is tried now and then, as what it brings changes too.
                is_better = not is_better
            if is_better:
                groups, slots, admitted, self._is_free = free_groups, free_slots, free, True
        if not admitted.slots and self._probes.has_given_up:
            # Newcomers that the draft follows from the start have nothing to catch up.
            ready = [slot._replace(lag_seconds=0.0) for slot in slots]
            paying = self._admit(ready, len(rooms), LEAST_GAIN, is_free=self._is_free)
            self._pays_without_lag = bool(paying.slots)
        plans = self._plans(admitted, groups, rooms)
        known = [0 if plan.known is None else plan.num_tokens for plan in plans]
        num_rows, longest = len(rooms) + sum(known), 1 + max(known, default=0)
        setbacks = self._setback(False), self._setback(True)
        rate = admitted.tokens_per_second
        self._exchange = Exchange(rate, self._prices, len(rooms), num_rows, longest, setbacks)
        self.estimated_speedup = admitted.speed_up
        is_for_all = len(admitted.slots) == len(slots)
        self._held_counts = None
        if not admitted.slots:
            self._drafts = False
        else:
            self._drafts = True if self._has_gate and is_for_all and not self._is_free else None
            if self._is_free and not any(known):
                pairs = zip(rooms, plans, strict=True)
                self._held_counts = {self._kind(r.request): p.num_tokens for r, p in pairs}
        return plans

    def _admit(
        self, slots: Sequence[Slot], num_seqs: int, least_gain: float, *, is_free: bool = False
    ) -> Admission:
        max_positions = max(self._max_model_tokens, MAX_KNOWN_DRAFT_TOKENS)
        way = self._way(is_free=is_free)
        return admit(slots, num_seqs, self._prices, max_positions, least_gain, way)

    def _offers(
        self,
        rooms: Sequence[DraftRoom],
        said: Sequence[Sequence[KnownDraft]],
        *,
        is_free: bool,
    ) -> tuple[list[_Group], list[Slot]]:
        """Give what could be drafted: by whoever promises more, what is known or the model.

        Args:
            rooms: the requests.
            said: what is known of each.
            is_free: whether the model's chains are as long as planned, though there is a gate.
        """
        groups: list[_Group] = []
        slots: list[Slot] = []
        alike: dict[tuple[_Kind, int, bool], _Group] = {}
        for index, (room, drafts) in enumerate(zip(rooms, said, strict=True)):
            limit = min(room.num_model_tokens, self._max_model_tokens)
            known = self._claims.best(drafts)
            if known is not None and self._is_better(known, room, limit, len(rooms)):
                slots += known_slots(len(groups), known)
                groups.append(_Group([index], known.draft))
            elif limit and self._has_gate:
                # Before its drafts are seen, the gate knows nothing that tells one from another.
                key = (self._kind(room.request), limit, room.draft_lag > 1)
                alike.setdefault(key, _Group([])).members.append(index)
            elif limit:
                prospect = self._prospect(room, limit)
                slots += model_slots(len(groups), prospect, 1, self._lag_seconds(room))
                groups.append(_Group([index]))
        for (kind, limit, _), group in alike.items():
            lag_seconds = sum(self._lag_seconds(rooms[index]) for index in group.members)
            count = len(group.members)
            if is_free:
                prospect = self._free_models[kind].prospect(limit)
                slots += model_slots(len(groups), prospect, count, lag_seconds)
            else:
                prospect = self._models[kind].prospect(limit)
                slots.append(chain_slot(len(groups), prospect, count, lag_seconds))
            groups.append(group)
        return groups, slots

    def _is_better(self, known: Weighed, room: DraftRoom, limit: int, num_seqs: int) -> bool:
        """Whether a known draft promises more than the model does beyond its price."""
        if not limit:
            return True
        model = self._prospect(room, limit)
        # A request's share of the passes, in tokens that its share of a plain step would give.
        seconds = sum(model.drafted) * self._prices.draft_pass(num_seqs, self._way(is_free=False))
        price = seconds / self._prices.plain_step(num_seqs)
        return known.num_expected >= sum(model.accepted) - price

    def _prospect(self, room: DraftRoom, limit: int) -> Prospect:
        request = room.request
        return self._models[self._kind(request)].prospect_of(request.request_id, limit)

    def _kind(self, request: Request) -> _Kind:
        return request.params.is_greedy, request.request_id in self._rejected

    def _setback(self, is_greedy: bool) -> float:
        """Give the tokens by which a pass behind a rejection falls short of others."""
        models = [self._models[is_greedy, is_rejected] for is_rejected in (False, True)]
        before, after = (sum(m.prospect(self._max_model_tokens).accepted) for m in models)
        return max(0.0, before - after)

    def _expect_passes(self, rooms: Sequence[DraftRoom], plans: Sequence[DraftPlan]) -> float:
        """Give the seconds of the passes that these plans lead to, if chains end independently."""
        drafting = [r.request for r, p in zip(rooms, plans, strict=True) if p.num_model_tokens]
        chains = [0.0] * self._max_model_tokens
        for kind, count in Counter(map(self._kind, drafting)).items():
            drafted = self._models[kind].prospect(self._max_model_tokens).drafted
            for place, chance in enumerate(drafted):
                chains[place] += count * chance
        return sum(self._prices.draft_pass(count, Drafting.GATED) for count in chains)

    def _lag_seconds(self, room: DraftRoom) -> float:
        """Give a catch-up's share of this step, where the draft lags by more than a pass leaves."""
        if room.draft_lag <= 1:
            return 0.0
        passes = room.draft_lag / (_TOKENS_PER_PASS * _CATCH_UP_PASSES)
        return self._prices.draft_pass(1, Drafting.FREE) * passes

    def _plans(
        self, admitted: Admission, groups: Sequence[_Group], rooms: Sequence[DraftRoom]
    ) -> list[DraftPlan]:
        plans = [DraftPlan()] * len(rooms)
        counts = [0] * len(groups)
        for slot in admitted.slots:
            counts[slot.group] += 1
        for group, count in zip(groups, counts, strict=True):
            for index in group.members if count else ():
                if group.known is not None:
                    plans[index] = DraftPlan(group.known.cut(count))
                elif self._has_gate and not self._is_free:
                    plans[index] = self._chain_plan(rooms[index])
                else:
                    plans[index] = DraftPlan(None, count)
        return plans

    def _held_plan(self, room: DraftRoom) -> DraftPlan:
        """Plan as was decided for a request's kind, or for all."""
        if self._held_counts is None:
            return self._chain_plan(room) if self._drafts else DraftPlan()
        limit = min(room.num_model_tokens, self._max_model_tokens)
        count = self._held_counts.get(self._kind(room.request))
        if count is None:
            count = min(self._held_counts.values())
        return DraftPlan(None, min(count, limit))

    def _chain_plan(self, room: DraftRoom) -> DraftPlan:
        """Leave it to the gate where a chain ends: it sees better than any plan."""
        return DraftPlan(None, min(room.num_model_tokens, self._max_model_tokens))

    def _observe_costs(
        self, pairs: Sequence[_Outcome], draft_seconds: float, target_seconds: float
    ) -> None:
        lengths = [
            self._num_drafted(share, outcome)
            for share, outcome in pairs
            if share.known_draft is None and share.num_draft_tokens
        ]
        if self._expected_pass_seconds and any(lengths):
            self._prices.observe_plan(self._expected_pass_seconds, lengths)
        if any(_catches_up(share) for share, _ in pairs):
            return
        num_drafts = [outcome.num_draft_tokens for _, outcome in pairs]
        if not any(num_drafts) and not self._is_like_rest:
            return
        num_rows, longest = len(pairs) + sum(num_drafts), 1 + max(num_drafts)
        seconds = draft_seconds, target_seconds
        chains = Chains(lengths, self._drafting)
        self._prices.observe(len(pairs), num_rows, longest, chains, *seconds)


def _catches_up(share: ScheduledRequest) -> bool:
    """Whether a share computes more than what the last step left: a prompt, or for a draft."""
    return share.num_tokens > 1 or share.num_catch_up_tokens > 1


def _models(max_model_tokens: int) -> dict[_Kind, ModelSurvival]:
    return {
        (is_greedy, is_rejected): ModelSurvival(max_model_tokens, wider=both)
        for is_greedy in (False, True)
        for both in [ModelSurvival(max_model_tokens)]
        for is_rejected in (False, True)
    }
