"""How many drafts each request gets in a step, and whose: the question that the scheduler asks.

The plain answer is here: the same number for everybody. The one that weighs costs against chances
is `engine/speculative/controller.py`. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.request import GRAMMAR, Request
from engine.step import KnownDraft, KnownDrafts

# Drafts that cost no draft pass may be longer: a rejected one costs only its row of the target.
MAX_KNOWN_DRAFT_TOKENS = 16


@dataclass(slots=True)
class DraftRoom:
    """One decoding request and how many drafts it has room for.

    Attributes:
        request: the request; one known token of it is computed in this step.
        num_tokens: drafts that can be of use.
        num_model_tokens: of these, what the draft model can hold.
    """

    request: Request
    num_tokens: int
    num_model_tokens: int

    @property
    def draft_lag(self) -> int:
        """Tokens that the target has computed and the draft model has not."""
        return self.request.num_computed_tokens - self.request.num_draft_computed_tokens


@dataclass(slots=True)
class DraftPlan:
    """What one request drafts in a step; nothing by default.

    Attributes:
        known: drafts that need no model.
        num_model_tokens: drafts of the draft model, where nothing is known.
    """

    known: KnownDraft | None = None
    num_model_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Drafts in all."""
        return self.num_model_tokens if self.known is None else len(self.known.token_ids)


class StepPlanner(Protocol):
    """Decides the drafts of a step.

    Attributes:
        draft_rests: whether a draft model was given up, so that it need not follow the prompts.
    """

    @property
    def draft_rests(self) -> bool: ...

    def wakes(self) -> bool:
        """Whether this step is to be planned; asked once per step. If not, nobody drafts."""
        ...

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        """Give one plan per request, each within its room."""
        ...


class DraftPlanner(StepPlanner, Protocol):
    """Decides the drafts of a step, which may follow upon one whose tokens are not known yet."""

    def plans_ahead(self, requests: Sequence[Request]) -> bool:
        """Whether drafts can be planned before the tokens in front of them are known."""
        ...


class FixedPlanner:
    """Gives everybody what is known and promises most, else as many of the model's drafts.

    Args:
        known_drafts: gives drafts that need no model; None = there are none.
        num_model_tokens: drafts of the draft model per pass; 0 = there is none.
    """

    def __init__(self, known_drafts: KnownDrafts | None, num_model_tokens: int) -> None:
        self._known_drafts = known_drafts
        self._num_model_tokens = num_model_tokens

    @property
    def draft_rests(self) -> bool:
        """Never: who drafts is fixed."""
        return False

    def wakes(self) -> bool:
        """Always; see `DraftPlanner.wakes`."""
        return True

    def plans_ahead(self, requests: Sequence[Request]) -> bool:
        """Where nobody reads the tokens; see `DraftPlanner.plans_ahead`."""
        return self._known_drafts is None

    def plan(self, rooms: Sequence[DraftRoom]) -> list[DraftPlan]:
        """Plan; see `DraftPlanner.plan`."""
        return [self._plan_one(room) for room in rooms]

    def _plan_one(self, room: DraftRoom) -> DraftPlan:
        num_model_tokens = min(room.num_model_tokens, self._num_model_tokens)
        limit = min(room.num_tokens, max(MAX_KNOWN_DRAFT_TOKENS, self._num_model_tokens))
        if self._known_drafts is not None and limit > 0:
            said = self._known_drafts(room.request, limit)
            known = max(said, key=lambda known: known.num_expected, default=None)
            if known is not None and not _is_better_continued(known, num_model_tokens):
                return DraftPlan(known)
        return DraftPlan(None, num_model_tokens)


def _is_better_continued(known: KnownDraft, num_model_tokens: int) -> bool:
    """Whether the draft model takes these tokens for granted too, and goes on behind them."""
    return known.drafter == GRAMMAR and len(known.token_ids) < num_model_tokens
