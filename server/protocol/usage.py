"""Token counts and speculation counts, as every answer carries them."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict


class PromptTokensDetails(TypedDict):
    """Prompt tokens found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """What the answer's tokens were: thinking; and how a predicted output did as a draft."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    """Tokens of the whole request: each prompt once, the answers of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class Metrics(TypedDict):
    """How speculation went, over all choices and of each.

    Counts of drafts and of accepted and wasted tokens, in all and by drafter; the answer's share of
    the time of its steps (`draft_ms`, `verify_ms`, `overhead_ms`); `estimated_speedup` is the mean
    of what the controller expected of these steps, null where nothing is weighed.

    It is sent when asked for, and always where acceptance is synthetic: then it has
    `synthetic_acceptance`, the rates by draft position, and the text is not the model's.
    """

    speculative_decoding: dict[str, Any]
