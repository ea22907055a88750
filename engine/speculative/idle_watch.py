"""Notices when a draft model is loaded and its controller has no use for it; says so once.

A controller tries a model that it gave up again now and then, so that a few drafts are none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine.draft_planner import DraftPlan, DraftRoom

logger = logging.getLogger(__name__)

_NUM_STEPS = 512
# Tries of a model that was given up stay well below this.
_FEW_STEPS = 48


class IdleWatch:
    """Counts the steps in which the draft model could have drafted, and those in which it did.

    Args:
        draft: its name.
        advice: what to do about it.

    Attributes:
        warning: what was logged; None until then.
    """

    def __init__(self, draft: str, advice: str) -> None:
        self.warning: str | None = None
        self._draft = draft
        self._advice = advice
        self._num_steps = 0
        self._num_drafting = 0
        self._sum_speedups = 0.0

    def observe(
        self, rooms: Sequence[DraftRoom], plans: Sequence[DraftPlan], estimated_speedup: float
    ) -> None:
        """Look at a step's plans; requests without room for a model's drafts say nothing of it."""
        if self.warning is not None:
            return
        pairs = zip(rooms, plans, strict=True)
        if not any(room.num_model_tokens and plan.known is None for room, plan in pairs):
            return
        self._count(any(plan.num_model_tokens for plan in plans), estimated_speedup)

    def observe_sleep(self) -> None:
        """Count a step that nobody planned, as the model was given up."""
        if self.warning is None:
            self._count(False, 1.0)

    def _count(self, is_drafting: bool, estimated_speedup: float) -> None:
        self._num_steps += 1
        self._num_drafting += is_drafting
        self._sum_speedups += estimated_speedup
        if self._num_steps < _NUM_STEPS:
            return
        if self._num_drafting <= _FEW_STEPS:
            self._warn()
        self._num_steps, self._num_drafting, self._sum_speedups = 0, 0, 0.0

    def _warn(self) -> None:
        speedup = self._sum_speedups / self._num_steps
        self.warning = (
            f"draft_not_used draft={self._draft} reason=does_not_pay steps={self._num_steps} "
            f"drafting_steps={self._num_drafting} estimated_speedup={speedup:.2f} "
            f'advice="{self._advice}"'
        )
        logger.warning(self.warning)
