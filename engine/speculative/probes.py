"""Steps that are planned otherwise, so that a change is noticed: what nobody tries, nobody learns.

At first a draft model is used without asking, so that there is something to go by. One that was
given up is tried again: a few requests draft for a few steps, of which the first pays for what the
draft lacks, and the others tell what drafts bring and cost. The time in between doubles as long as
nothing comes of it. Where drafts are in use, a plain step now and then tells what they are compared
with. Pure Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.draft_planner import DraftPlan, DraftRoom

_LEARNING_STEPS = 12
_LEARNING_TOKENS = 4
_FIRST_PAUSE_STEPS = 32
_LAST_PAUSE_STEPS = 1024
_PROBE_STEPS = 3
_PROBE_TOKENS = 2
_LEAST_PROBED = 4
_PROBED_SHARE = 4
# A plain step comes early on, as many steps after the last as came before it, and then this often.
_PLAIN_STEPS = 128
# So often one request drafts further than planned, so that its chances there are known too.
_STRETCH_STEPS = 48
_STRETCH_TOKENS = 2


class Probes:
    """Counts steps, and adds drafts to plans.

    Args:
        max_model_tokens: drafts of a model per pass at most.
        stretches: whether plans that draft are made longer now and then; a gate sees to it itself.
    """

    def __init__(self, max_model_tokens: int, *, stretches: bool) -> None:
        self._max_model_tokens = max_model_tokens
        self._stretches = stretches
        self._num_learning_steps = _LEARNING_STEPS
        self._num_idle_steps = 0
        self._pause_steps = _FIRST_PAUSE_STEPS
        self._num_left = 0
        self._num_drafting_steps = 0

    @property
    def is_idle(self) -> bool:
        """Whether the last step had no draft of the model, and no probe is under way."""
        return self._num_idle_steps > 0 and self._num_left == 0

    def add_to(self, rooms: Sequence[DraftRoom], plans: list[DraftPlan]) -> bool:
        """Change some of a step's plans, now and then.

        Returns:
            Whether a draft model is tried, so that all its drafts count.
        """
        if not self._max_model_tokens:
            return False
        if self._num_learning_steps:
            self._num_learning_steps -= 1
            _probe(rooms, plans, len(rooms), min(_LEARNING_TOKENS, self._max_model_tokens))
            return True
        drafting = [place for place, plan in enumerate(plans) if plan.num_model_tokens]
        if drafting:
            self._num_idle_steps, self._pause_steps = 0, _FIRST_PAUSE_STEPS
            self._num_left = 0
            self._num_drafting_steps += 1
            if _is_time_for_plain_step(self._num_drafting_steps):
                plans[:] = [DraftPlan()] * len(plans)
            elif self._stretches:
                self._stretch(rooms, plans, drafting)
            return False
        self._num_idle_steps += 1
        if self._num_idle_steps == self._pause_steps:
            self._pause_steps = min(2 * self._pause_steps, _LAST_PAUSE_STEPS)
            self._num_left = _PROBE_STEPS
        if not self._num_left:
            return False
        self._num_left -= 1
        self._num_idle_steps = 1
        num_probed = max(_LEAST_PROBED, len(rooms) // _PROBED_SHARE)
        _probe(rooms, plans, num_probed, _PROBE_TOKENS)
        return True

    def _stretch(
        self, rooms: Sequence[DraftRoom], plans: list[DraftPlan], drafting: Sequence[int]
    ) -> None:
        if self._num_drafting_steps % _STRETCH_STEPS == 0:
            place = drafting[self._num_drafting_steps // _STRETCH_STEPS % len(drafting)]
            limit = min(rooms[place].num_model_tokens, self._max_model_tokens)
            longer = plans[place].num_model_tokens + _STRETCH_TOKENS
            plans[place] = DraftPlan(None, min(longer, limit))


def _probe(
    rooms: Sequence[DraftRoom], plans: list[DraftPlan], num_probed: int, num_tokens: int
) -> None:
    """Let requests draft that would not; who lacks little is cheap to try."""
    idle = [place for place, plan in enumerate(plans) if plan.known is None]
    idle.sort(key=lambda place: rooms[place].draft_lag)
    for place in idle[:num_probed]:
        plans[place] = DraftPlan(None, min(num_tokens, rooms[place].num_model_tokens))


def _is_time_for_plain_step(num_steps: int) -> bool:
    if num_steps < _PLAIN_STEPS:
        return num_steps >= 8 and num_steps.bit_count() == 1
    return num_steps % _PLAIN_STEPS == 0
