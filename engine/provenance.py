"""Where the tokens of a pass come from, as deltas tell it of requests that ask; no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PassProvenance:
    """One pass of one request.

    Attributes:
        seconds: since the request's pass before; of its first, since it left the queue.
        draft_token_ids: the drafts that were verified, those among them that were rejected.
        survival: for each draft the estimate, made before the target's pass, of its chance to be
            accepted with all before it; None where nobody weighs drafts.
        forced: places among the emitted tokens at which a grammar left one choice.
    """

    seconds: float
    draft_token_ids: list[int]
    survival: list[float] | None = None
    forced: tuple[int, ...] = ()
