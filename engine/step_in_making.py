"""A step while the scheduler puts it together: what it holds and may still hold; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.request import Request
from engine.step import ScheduledRequest, SchedulerOutput


@dataclass(slots=True)
class StepInMaking:
    """A step being put together.

    Attributes:
        budget: tokens that may still be given out.
        num_seats: requests that it may compute at most.
        shares: what was given, by request id.
        preempted: requests that lost their blocks.
        draft_rests: whether the draft leaves for later what is given out now.
        is_for_background: whether it is the turn of background work to be given something.
        is_for_guests: whether that is to be a part of what real-time requests leave.
    """

    budget: int
    num_seats: int = 0
    shares: dict[str, ScheduledRequest] = field(default_factory=dict)
    preempted: list[Request] = field(default_factory=list)
    draft_rests: bool = False
    is_for_background: bool = False
    is_for_guests: bool = False

    @property
    def is_full(self) -> bool:
        """Whether nobody can be given anything more."""
        return self.budget == 0 or len(self.shares) >= self.num_seats

    def took_from_likes_of(self, request: Request) -> bool:
        """Whether somebody who comes no later in order lost blocks, so that others wait."""
        return any(lost.is_background <= request.is_background for lost in self.preempted)

    def take(self, num_tokens: int) -> int:
        """Spend as much of the budget as is there; returns how much."""
        taken = min(num_tokens, self.budget)
        self.budget -= taken
        return taken

    def drop(self, request: Request) -> None:
        """Take back what a request was given."""
        share = self.shares.pop(request.request_id, None)
        if share is not None:
            self.budget += share.num_tokens + share.num_draft_tokens + share.num_catch_up_tokens

    def output(self) -> SchedulerOutput:
        """Give the step; those that decode come first."""
        by_kind = sorted(self.shares.values(), key=lambda share: share.num_tokens > 1)
        return SchedulerOutput(by_kind, self.preempted)
