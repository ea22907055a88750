"""What offline generation returns; plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.request import DraftCounts, FinishReason, SpeculationStats, TokenLogprobs


@dataclass(slots=True)
class CompletionOutput:
    """One answer.

    Attributes:
        index: which of the `n` choices this is.
        token_ids: the answer, up to and including the token that ended it.
        text: the answer as text, without the stop text; None without a tokenizer.
        finish_reason: why it ended.
        stop_reason: the stop token id or stop text that ended it, if one did.
        logprobs: one entry per token when asked for.
        stats: speculation counts of this answer.
    """

    index: int
    token_ids: list[int] = field(default_factory=list)
    text: str | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    error: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """All answers to one prompt.

    Attributes:
        index: place of the prompt in the input.
        prompt: the prompt as text, when it was given as text.
        prompt_token_ids: the prompt as tokens.
        outputs: one per choice.
        seed: the seed that was used; the same seed gives the same answers.
        prompt_logprobs: one entry per prompt token from the second on, when asked for.
        num_cached_tokens: prompt tokens found in the prefix cache, over all choices.
        synthetic_acceptance: see `engine.door.ModelInfo`; if there is any, the answers are not the
            target's.
    """

    index: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    seed: int
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None
    synthetic_acceptance: tuple[float, ...] = ()

    @property
    def num_output_tokens(self) -> int:
        """Answer tokens over all choices."""
        return sum(len(output.token_ids) for output in self.outputs)

    @property
    def metrics(self) -> dict[str, Any]:
        """How speculation went over all choices, named as on the wire."""
        total = SpeculationStats()
        for output in self.outputs:
            total.add(output.stats)
        return {"speculative_decoding": speculation_metrics(total, self.synthetic_acceptance)}


def speculation_metrics(
    stats: SpeculationStats, synthetic_acceptance: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Render how speculation went, with the names that clients of the field read.

    Args:
        stats: the counts.
        synthetic_acceptance: see `engine.door.ModelInfo`; told only where there is any.
    """
    mark = {"synthetic_acceptance": list(synthetic_acceptance)} if synthetic_acceptance else {}
    speedup = stats.estimated_speedup
    return {
        **mark,
        "num_target_passes": stats.num_target_passes,
        **_draft_metrics(stats),
        "tokens_per_target_pass": round(stats.tokens_per_target_pass, 4),
        "estimated_speedup": None if speedup is None else round(speedup, 4),
        "draft_ms": _milliseconds(stats.draft_seconds),
        "verify_ms": _milliseconds(stats.verify_seconds),
        "overhead_ms": _milliseconds(stats.overhead_seconds),
        "by_drafter": {name: _draft_metrics(own) for name, own in stats.by_drafter.items()},
    }


def _draft_metrics(counts: DraftCounts) -> dict[str, Any]:
    return {
        "num_drafts": counts.num_drafts,
        "num_draft_tokens": counts.num_draft_tokens,
        "num_accepted_tokens": counts.num_accepted_tokens,
        "num_wasted_tokens": counts.num_wasted_tokens,
        "num_draft_tokens_per_pos": counts.num_draft_tokens_per_pos,
        "num_accepted_tokens_per_pos": counts.num_accepted_tokens_per_pos,
        "draft_acceptance_rate": round(counts.acceptance_rate, 4),
    }


def _milliseconds(seconds: float) -> float:
    return round(1000.0 * seconds, 3)
