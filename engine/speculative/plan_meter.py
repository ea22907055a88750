"""Measures what planning a step's drafts takes, and keeps what it promised until it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from engine.draft_planner import DraftPlan, DraftRoom, StepPlanner
from engine.request import DRAFT_MODEL, Request
from engine.speculative.drafter_faults import CONTROLLER, DrafterFaults
from engine.speculative.idle_watch import IdleWatch
from engine.step_ledger import Planning


class PlanMeter:
    """Stands between the scheduler and its planner.

    Args:
        planner: decides.
        take_lookup_seconds: gives the time since it was last asked that drafters without a model
            spent on what they found.
        reads_tokens_of: tells whether somebody drafts by looking at a request's tokens.
        estimated_speedup: gives what the last plan promises; None = plans weigh nothing.
        watch: looks at what is weighed; None = there is no model that could be idle.
        faults: knows which drafters failed, and hears if planning does; None = a list of our own.
    """

    def __init__(
        self,
        planner: StepPlanner,
        take_lookup_seconds: Callable[[], dict[str, float]],
        reads_tokens_of: Callable[[Request], bool],
        estimated_speedup: Callable[[], float] | None = None,
        watch: IdleWatch | None = None,
        faults: DrafterFaults | None = None,
    ) -> None:
        self._planner = planner
        self._take_lookup_seconds = take_lookup_seconds
        self._reads_tokens_of = reads_tokens_of
        self._estimated_speedup = estimated_speedup
        self._watch = watch
        self._faults = faults or DrafterFaults()
        self._last = Planning()

    @property
    def draft_rests(self) -> bool:
        """See `engine.draft_planner.DraftPlanner`."""
        return self._is_model_off or self._planner.draft_rests

    def wakes(self) -> bool:
        """See `engine.draft_planner.DraftPlanner.wakes`."""
        if self._faults.is_off(CONTROLLER):
            return False
        is_awake = self._planner.wakes()
        if not is_awake and self._watch is not None:
            self._watch.observe_sleep()
        return is_awake

    def plans_ahead(self, requests: Sequence[Request]) -> bool:
        """See `engine.draft_planner.DraftPlanner.plans_ahead`."""
        return not any(map(self._reads_tokens_of, requests))

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        """Plan; see `engine.draft_planner.DraftPlanner.plan`."""
        started = time.perf_counter()
        if self._is_model_off:
            rooms = [DraftRoom(room.request, room.num_tokens, 0) for room in rooms]
        plans = [DraftPlan() for _ in rooms]
        with self._faults.watching(CONTROLLER):
            plans = self._planner.plan(rooms)
        estimate = None if self._estimated_speedup is None else self._estimated_speedup()
        if self._watch is not None and estimate is not None:
            self._watch.observe(rooms, plans, estimate)
        seconds = time.perf_counter() - started
        self._last = Planning(seconds, self._take_lookup_seconds(), estimate)
        return plans

    @property
    def _is_model_off(self) -> bool:
        return self._faults.is_off(DRAFT_MODEL) or self._faults.is_off(CONTROLLER)

    def take(self) -> Planning:
        """Give what was planned since the last time."""
        last, self._last = self._last, Planning()
        return last
