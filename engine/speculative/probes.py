"""Steps that are planned otherwise, so that a change is noticed: what nobody tries, nobody learns.

At first a draft model is used without asking, so that there is something to go by. One that was
given up is tried again: a few requests draft for a few steps, of which the first pays for what the
draft lacks, and the others tell what drafts bring and cost. The time in between doubles as long as
nothing comes of it. Where drafts are in use, a few steps without any tell now and then what they
are compared with: behind the first nobody plans, as if drafts had been given up, and the last of
these is looked at. Pure Python.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from engine.draft_planner import DraftPlan, DraftRoom

# First all drafts of short chains count, to tell what they bring; then chains end as they would.
_FREE_STEPS, _FREE_TOKENS = 12, 4
_GATED_STEPS = 28
_FIRST_PAUSE_STEPS = 48
_LAST_PAUSE_STEPS = 1024
_PROBE_STEPS = 4
_PROBE_TOKENS = 2
_LEAST_PROBED = 4
_PROBED_SHARE = 2
# Rests come early on, as many steps after the last as came before it, and then this often.
_REST_EVERY = 256
_REST_STEPS = 4
# So often one request drafts further than planned, so that its chances there are known too.
_STRETCH_STEPS = 48
_STRETCH_TOKENS = 2


class Probe(enum.Enum):
    """What is tried in a step: nothing, a model whose drafts all count, or one under its gate."""

    NOTHING = enum.auto()
    FREE = enum.auto()
    GATED = enum.auto()


class Probes:
    """Counts steps, and adds drafts to plans.

    Args:
        max_model_tokens: drafts of a model per pass at most.
        has_gate: whether a gate ends the model's chains; without one, they are made longer than
            planned now and then.
    """

    def __init__(self, max_model_tokens: int, *, has_gate: bool) -> None:
        self._max_model_tokens = max_model_tokens
        self._has_gate = has_gate
        self._num_free = _FREE_STEPS
        self._num_gated = _GATED_STEPS if has_gate else 0
        self._num_idle_steps = 0
        self._pause_steps = _FIRST_PAUSE_STEPS
        self._num_left = 0
        self._num_drafting_steps = 0
        self._num_rest_left = 0

    def rests(self) -> bool:
        """Whether the step that begins is one of a rest, behind the first."""
        if self._num_rest_left == 0:
            return False
        self._num_rest_left -= 1
        return True

    @property
    def is_rest_over(self) -> bool:
        """Whether the rest that there was has come to its last step, if not farther."""
        return self._num_rest_left == 0

    @property
    def has_given_up(self) -> bool:
        """Whether a try of the model has come to nothing since it last drafted."""
        return self._pause_steps > _FIRST_PAUSE_STEPS

    @property
    def is_trying(self) -> bool:
        """Whether a try is under way."""
        return self._num_left > 0

    def sleep(self) -> None:
        """Count a step that nobody plans."""
        self._num_idle_steps += 1

    def add_to(self, rooms: Sequence[DraftRoom], plans: list[DraftPlan]) -> Probe:
        """Change some of a step's plans, now and then."""
        if not self._max_model_tokens:
            return Probe.NOTHING
        if self._num_free or self._num_gated:
            return self._learn(rooms, plans)
        drafting = [place for place, plan in enumerate(plans) if plan.num_model_tokens]
        if drafting:
            self._num_idle_steps, self._pause_steps = 0, _FIRST_PAUSE_STEPS
            self._num_left = 0
            self._num_drafting_steps += 1
            if _is_time_for_rest(self._num_drafting_steps):
                self._rest(plans)
            elif not self._has_gate:
                self._stretch(rooms, plans, drafting)
            return Probe.NOTHING
        self._num_idle_steps += 1
        if self._num_idle_steps >= self._pause_steps and not self._num_left:
            self._pause_steps = min(2 * self._pause_steps, _LAST_PAUSE_STEPS)
            self._num_left = _PROBE_STEPS
        return self._try_again(rooms, plans) if self._num_left else Probe.NOTHING

    def _learn(self, rooms: Sequence[DraftRoom], plans: list[DraftPlan]) -> Probe:
        if self._num_free:
            self._num_free -= 1
            self._let_draft(rooms, plans, len(rooms), _FREE_TOKENS)
            return Probe.FREE
        self._num_gated -= 1
        self._let_draft(rooms, plans, len(rooms), self._max_model_tokens)
        return Probe.GATED

    def _rest(self, plans: list[DraftPlan]) -> None:
        plans[:] = [DraftPlan()] * len(plans)
        self._num_rest_left = _REST_STEPS - 1

    def _try_again(self, rooms: Sequence[DraftRoom], plans: list[DraftPlan]) -> Probe:
        is_first = self._num_left == _PROBE_STEPS
        self._num_left -= 1
        self._num_idle_steps = 1
        num_probed = max(_LEAST_PROBED, len(rooms) // _PROBED_SHARE)
        if is_first or not self._has_gate:
            self._let_draft(rooms, plans, num_probed, _PROBE_TOKENS)
            return Probe.FREE
        self._let_draft(rooms, plans, num_probed, self._max_model_tokens)
        return Probe.GATED

    def _let_draft(
        self,
        rooms: Sequence[DraftRoom],
        plans: list[DraftPlan],
        num_requests: int,
        num_tokens: int,
    ) -> None:
        """Let requests draft that would not; who lacks little is cheap to try."""
        idle = [place for place, plan in enumerate(plans) if plan.known is None]
        idle.sort(key=lambda place: rooms[place].draft_lag)
        for place in idle[:num_requests]:
            limit = min(rooms[place].num_model_tokens, self._max_model_tokens)
            plans[place] = DraftPlan(None, min(num_tokens, limit))

    def _stretch(
        self, rooms: Sequence[DraftRoom], plans: list[DraftPlan], drafting: Sequence[int]
    ) -> None:
        if self._num_drafting_steps % _STRETCH_STEPS == 0:
            place = drafting[self._num_drafting_steps // _STRETCH_STEPS % len(drafting)]
            limit = min(rooms[place].num_model_tokens, self._max_model_tokens)
            longer = plans[place].num_model_tokens + _STRETCH_TOKENS
            plans[place] = DraftPlan(None, min(longer, limit))


def _is_time_for_rest(num_steps: int) -> bool:
    if num_steps < _REST_EVERY:
        return num_steps >= 8 and num_steps.bit_count() == 1
    return num_steps % _REST_EVERY == 0
