"""A request's life inside the engine, and what the engine says of it after each step; no torch.

A request is one answer: `n` choices are `n` requests over a shared prefix. Its tokens are one
list, prompt and answer together; how far the target and the draft have computed their keys and
values of it are two counts.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.provenance import PassProvenance
from engine.sampling_params import SamplingParams

# What a delta says where the request itself rules out every token.
NO_TOKEN_POSSIBLE = (
    "The request's settings (allowed_token_ids, bad_words, min_tokens, the shape of the answer) "
    "leave no token possible at this place; it cannot go on."
)
INVALID_LOGITS = "The model's logits held NaN or infinity; this request cannot go on."
# Who drafts, as told in deltas and reports.
DRAFT_MODEL = "draft_model"
GRAMMAR = "grammar"
NGRAM = "ngram"
PREDICTION = "prediction"
SUFFIX = "suffix"


class FinishReason(enum.StrEnum):
    """Why a request ended, in OpenAI's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class RequestStatus(enum.Enum):
    """Where a request is: waiting to be scheduled, holding blocks, or done."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class PassReport(NamedTuple):
    """What a request's steps took since it was last told of, and what was expected of the last.

    Attributes:
        draft_seconds: its share of the time spent drafting.
        verify_seconds: its share of the target's passes.
        overhead_seconds: its share of everything else that steps do.
        estimated_speedup: see `SpeculationStats`, of the last of these steps.
    """

    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    overhead_seconds: float = 0.0
    estimated_speedup: float | None = None


@dataclass(slots=True)
class DraftCounts:
    """What became of drafts.

    Attributes:
        num_drafts: passes that verified at least one draft token.
        num_draft_tokens: draft tokens verified.
        num_accepted_tokens: draft tokens that were emitted.
        num_draft_tokens_per_pos: draft tokens verified at each draft position.
        num_accepted_tokens_per_pos: accepted draft tokens at each draft position.
    """

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_draft_tokens_per_pos: list[int] = field(default_factory=list)
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)

    def observe_draft(self, num_draft_tokens: int, num_accepted: int) -> None:
        """Count one draft of at least one token."""
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted
        _grow(self.num_draft_tokens_per_pos, num_draft_tokens)
        _grow(self.num_accepted_tokens_per_pos, num_draft_tokens)
        for position in range(num_draft_tokens):
            self.num_draft_tokens_per_pos[position] += 1
            self.num_accepted_tokens_per_pos[position] += position < num_accepted

    def add_drafts(self, other: DraftCounts) -> None:
        """Add other drafts to these."""
        self.num_drafts += other.num_drafts
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_tokens += other.num_accepted_tokens
        for mine, theirs in (
            (self.num_draft_tokens_per_pos, other.num_draft_tokens_per_pos),
            (self.num_accepted_tokens_per_pos, other.num_accepted_tokens_per_pos),
        ):
            _grow(mine, len(theirs))
            for position, count in enumerate(theirs):
                mine[position] += count

    @property
    def num_wasted_tokens(self) -> int:
        """Draft tokens verified in vain."""
        return self.num_draft_tokens - self.num_accepted_tokens

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft tokens over verified draft tokens."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


@dataclass(slots=True)
class SpeculationStats(DraftCounts):
    """How speculation went for one request, or for a whole run when added up.

    Attributes:
        num_target_passes: target passes that emitted at least one token.
        num_output_tokens: tokens emitted, the target's own included.
        draft_seconds: time spent drafting: the draft model's passes, and looking drafts up.
        verify_seconds: time spent in the target's passes, sampling included.
        overhead_seconds: time of the same steps spent on anything else.
        num_weighed_steps: steps whose drafts a controller weighed.
        sum_estimated_speedups: what it expected of each, added up.
        by_drafter: the drafts by who made them.
    """

    num_target_passes: int = 0
    num_output_tokens: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    overhead_seconds: float = 0.0
    num_weighed_steps: int = 0
    sum_estimated_speedups: float = 0.0
    by_drafter: dict[str, DraftCounts] = field(default_factory=dict)

    def observe(
        self,
        num_draft_tokens: int,
        num_accepted: int,
        num_emitted: int,
        drafter: str | None = None,
    ) -> None:
        """Count one pass that verified `num_draft_tokens` and emitted `num_emitted`."""
        self.num_target_passes += 1
        self.num_output_tokens += num_emitted
        if num_draft_tokens == 0:
            return
        self.observe_draft(num_draft_tokens, num_accepted)
        if drafter is not None:
            own = self.by_drafter.setdefault(drafter, DraftCounts())
            own.observe_draft(num_draft_tokens, num_accepted)

    def observe_report(self, report: PassReport) -> None:
        """Count what steps took, and what was expected of the last."""
        self.draft_seconds += report.draft_seconds
        self.verify_seconds += report.verify_seconds
        self.overhead_seconds += report.overhead_seconds
        if report.estimated_speedup is not None:
            self.num_weighed_steps += 1
            self.sum_estimated_speedups += report.estimated_speedup

    def add(self, other: SpeculationStats) -> None:
        """Add another request's counts to these."""
        self.add_drafts(other)
        self.num_target_passes += other.num_target_passes
        self.num_output_tokens += other.num_output_tokens
        self.draft_seconds += other.draft_seconds
        self.verify_seconds += other.verify_seconds
        self.overhead_seconds += other.overhead_seconds
        self.num_weighed_steps += other.num_weighed_steps
        self.sum_estimated_speedups += other.sum_estimated_speedups
        for drafter, counts in other.by_drafter.items():
            self.by_drafter.setdefault(drafter, DraftCounts()).add_drafts(counts)

    @property
    def tokens_per_target_pass(self) -> float:
        """Tokens emitted per target pass, the target's own token included (tau)."""
        return self.num_output_tokens / self.num_target_passes if self.num_target_passes else 0.0

    @property
    def estimated_speedup(self) -> float | None:
        """The mean over steps of what a controller expected of their drafts.

        Tokens per second of everybody in the step, over those without drafts; None where nobody
        weighed anything.
        """
        weighed = self.num_weighed_steps
        return self.sum_estimated_speedups / weighed if weighed else None


def _grow(counts: list[int], size: int) -> None:
    counts.extend([0] * (size - len(counts)))


@dataclass(slots=True, eq=False)
class Request:
    """One answer being generated.

    Attributes:
        request_id: unique while the request lives.
        prompt_token_ids: the prompt, at least one token.
        params: sampling settings; `params.seed` is set (the engine's door draws one if need be).
        eos_token_ids: tokens that end the answer unless `params.ignore_eos`.
        choice_index: which of `n` choices this is; part of the noise key.
        priority: lower is served first.
        arrival_time: seconds on the monotonic clock.
        max_total_tokens: prompt and answer together at most; set at the door.
        cache_salt: requests with different salts share no cached blocks.
        external_id: what the caller knows it by, for logs; need not be unique.
        wants_provenance: whether its deltas say where their tokens come from.
        is_background: whether it yields to every other that does not, whatever their priorities.
        token_ids: prompt and answer so far.
        num_computed_tokens: leading tokens whose target keys and values are in the cache.
        num_draft_computed_tokens: the same for the draft; it may lag behind.
        num_in_flight_tokens: tokens that steps which are under way may add at most.
        num_cached_tokens: prompt tokens found in the prefix cache at first admission.
        scheduled_time: when that was, in seconds on the monotonic clock.
        num_preemptions: how often the request lost its blocks.
        num_prompt_logprobs: log probabilities of prompt tokens that were told.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: frozenset[int] = frozenset()
    choice_index: int = 0
    priority: int = 0
    arrival_time: float = 0.0
    max_total_tokens: int = 2**31 - 1
    cache_salt: str = ""
    external_id: str = ""
    wants_provenance: bool = False
    is_background: bool = False
    status: RequestStatus = RequestStatus.WAITING
    token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_draft_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    num_cached_tokens: int | None = None
    scheduled_time: float | None = None
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_prompt_logprobs: int = 0

    def __post_init__(self) -> None:
        assert self.prompt_token_ids, "a request needs at least one prompt token"
        if not self.token_ids:
            self.token_ids = list(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and answer tokens known so far."""
        return len(self.token_ids)

    @property
    def num_tokens_left(self) -> int:
        """Known tokens that the target has not computed."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Answer tokens so far."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended, for whatever reason."""
        return self.status is RequestStatus.FINISHED

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether log probabilities of prompt tokens are wanted that were not told yet."""
        # Nothing comes before the first token, so it has none.
        wanted = self.params.prompt_logprobs is not None
        return wanted and self.num_prompt_logprobs < self.num_prompt_tokens - 1

    @property
    def reason_without_token(self) -> str:
        """What to say where the sampler found no token to take."""
        return NO_TOKEN_POSSIBLE if self.params.can_rule_out_all else INVALID_LOGITS

    def append(self, sampled: list[int]) -> list[int]:
        """Append sampled tokens up to the one that ends the answer, and note why it ended.

        Returns:
            The tokens that were taken; a stop or length limit inside `sampled` cuts the rest.
        """
        taken: list[int] = []
        if sampled and self.num_tokens >= self.max_total_tokens:
            self.finish(FinishReason.LENGTH)
            return taken
        for token_id in sampled:
            self.token_ids.append(token_id)
            taken.append(token_id)
            if self._ends_with(token_id):
                break
        return taken

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Mark the request as ended."""
        self.status = RequestStatus.FINISHED
        self.finish_reason = reason
        self.stop_reason = stop_reason

    def _ends_with(self, token_id: int) -> bool:
        if self.num_output_tokens >= self.params.min_tokens:
            if token_id in self.params.stop_token_ids:
                self.finish(FinishReason.STOP, token_id)
            elif not self.params.ignore_eos and token_id in self.eos_token_ids:
                self.finish(FinishReason.STOP)
        if not self.is_finished and self.num_tokens >= self.max_total_tokens:
            self.finish(FinishReason.LENGTH)
        return self.is_finished


@dataclass(slots=True)
class TokenLogprobs:
    """Log probabilities of one emitted token and its most likely alternatives, in nats.

    Attributes:
        logprob: of the emitted token.
        rank: 1 for the most likely token.
        top: (token id, logprob), most likely first; as many as the request asked for.
    """

    logprob: float
    rank: int
    top: list[tuple[int, float]]


@dataclass(slots=True)
class RequestDelta:
    """What one step added to one request; the only thing the engine says of requests.

    Attributes:
        new_token_ids: tokens emitted by this step, possibly none when the request just ended.
        logprobs: one entry per new token when the request asked for them.
        finish_reason: set once, on the last delta.
        stop_reason: the stop token id that ended the answer, if one did.
        num_cached_tokens: prompt tokens found in the prefix cache.
        scheduled_time: when the request first left the queue, in seconds on the monotonic clock;
            told with the first token.
        num_draft_tokens: draft tokens that the step verified.
        num_accepted_tokens: of those, accepted; they come first among the new tokens.
        drafter: who drafted them; None where nobody did.
        report: what the request's steps took since its last delta.
        prompt_logprobs: one entry per prompt token from the second on, as far as the step got,
            when the request asked for them.
        provenance: where the new tokens come from, when the request wants to know.
        error: what failed, when the finish reason is `error`.
    """

    request_id: str
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    scheduled_time: float | None = None
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    drafter: str | None = None
    report: PassReport = PassReport()
    prompt_logprobs: list[TokenLogprobs] | None = None
    provenance: PassProvenance | None = None
    error: str | None = None

    def observe(self, stats: SpeculationStats, num_taken: int) -> None:
        """Count the step in `stats`: what it took, and what it emitted, if anything.

        Args:
            stats: counts of the answer.
            num_taken: leading new tokens that belong to the answer; a stop text may cut the rest.
        """
        stats.observe_report(self.report)
        if self.new_token_ids:
            num_accepted = min(self.num_accepted_tokens, num_taken)
            stats.observe(self.num_draft_tokens, num_accepted, num_taken, self.drafter)
