"""What one step is asked to do (down) and what came of it (up); no torch.

The scheduler and the runner never see each other: `EngineCore` carries these between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.provenance import PassProvenance
from engine.request import DRAFT_MODEL, Request, TokenLogprobs


@dataclass(frozen=True, slots=True)
class KnownDraft:
    """A draft that needs no model: the next tokens as somebody already knows or guesses them.

    Attributes:
        token_ids: at least one.
        drafter: who says so.
        survival: for each, how likely it is thought to be accepted with all before it.
    """

    token_ids: list[int]
    drafter: str
    survival: list[float]

    @property
    def num_expected(self) -> float:
        """Tokens that are thought to be accepted."""
        return sum(self.survival)

    def cut(self, count: int) -> KnownDraft:
        """Give the first tokens of it."""
        return KnownDraft(self.token_ids[:count], self.drafter, self.survival[:count])


KnownDrafts = Callable[[Request, int], list[KnownDraft]]
"""Gives what is said of a request's next tokens, at most so many of them, by each who knows."""


@dataclass(slots=True)
class ScheduledRequest:
    """One request's share of a step.

    The target computes tokens `[num_computed_tokens, num_computed_tokens + num_tokens)` of the
    request and then up to `num_draft_tokens` drafts; slots for all of them are reserved.
    Prefill is a share with `num_tokens > 1`, plain decoding one with `num_tokens == 1` and no
    drafts. The draft first computes `num_catch_up_tokens` that it lacks and the target has.

    Attributes:
        request: the request; its counts are as before the step.
        num_tokens: known tokens to compute, at least 1.
        num_draft_tokens: draft tokens to propose and verify at most.
        num_catch_up_tokens: tokens for the draft alone, before `num_computed_tokens`.
        block_ids: the request's block table, covering every reserved slot.
        known_draft: the drafts, where no model has to propose them.
        wants_prompt_logprobs: the log probabilities of the next prompt tokens are wanted for each
            known token of the share.
        draft_rests: whether the draft leaves the share's tokens for later.
        is_ahead: the share's token is the last one that a step under way will emit, whichever that
            is; the counts of the request say nothing of it yet.
        start: position of the first known token to compute; by default where the request stands.
    """

    request: Request
    num_tokens: int
    num_draft_tokens: int
    num_catch_up_tokens: int
    block_ids: list[int]
    known_draft: KnownDraft | None = None
    wants_prompt_logprobs: bool = False
    draft_rests: bool = False
    is_ahead: bool = False
    start: int = -1

    def __post_init__(self) -> None:
        if self.start < 0:
            self.start = self.request.num_computed_tokens

    @property
    def num_emitted_at_most(self) -> int:
        """Tokens that the share may add to its request."""
        return self.num_draft_tokens + 1 if self.samples else 0

    @property
    def drafter(self) -> str:
        """Who drafts, if anybody does."""
        return DRAFT_MODEL if self.known_draft is None else self.known_draft.drafter

    @property
    def samples(self) -> bool:
        """Whether the share reaches the last known token, so that a token is sampled."""
        return self.is_ahead or self.start + self.num_tokens == self.request.num_tokens

    @property
    def is_draft_current(self) -> bool:
        """Whether the draft, after catching up, has all that the target has."""
        lag = self.request.num_computed_tokens - self.request.num_draft_computed_tokens
        return self.num_catch_up_tokens == lag


@dataclass(slots=True)
class SchedulerOutput:
    """What the next step computes, in batch order.

    Attributes:
        scheduled: one share per request; requests that only decode or verify come first.
        preempted: requests that lost their blocks to make room.
    """

    scheduled: list[ScheduledRequest] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes, drafts and catch-up included."""
        return sum(
            s.num_tokens + s.num_draft_tokens + s.num_catch_up_tokens for s in self.scheduled
        )


@dataclass(slots=True)
class RequestOutcome:
    """What one share of the step gave.

    Attributes:
        sampled: emitted tokens, accepted drafts first, the target's own last; empty while the
            prompt is not finished.
        num_draft_tokens: draft tokens that were verified.
        num_accepted_tokens: of those, accepted.
        draft_token_ids: these draft tokens, where the request wants to know whence its tokens come.
        num_draft_computed_tokens: leading tokens whose draft keys and values are in the cache,
            counting draft tokens as if all had been accepted.
        logprobs: one entry per emitted token, when asked for.
        prompt_logprobs: one entry per prompt token behind a known token of the share, when asked
            for.
        provenance: where the emitted tokens come from, likewise.
        is_complete: the answer cannot go on and is finished, though no end token says so.
        error: why the request cannot go on; the others are not touched.
    """

    sampled: list[int]
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    draft_token_ids: Sequence[int] = ()
    num_draft_computed_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    provenance: PassProvenance | None = None
    is_complete: bool = False
    error: str | None = None


@dataclass(slots=True)
class ModelOutput:
    """One outcome per scheduled request, in the same order."""

    outcomes: list[RequestOutcome]
