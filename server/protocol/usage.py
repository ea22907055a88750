"""Token counts and speculation counts, as every answer carries them."""

from __future__ import annotations

from typing import Any, TypedDict


class PromptTokensDetails(TypedDict):
    """Prompt tokens found in the prefix cache."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of the whole request: each prompt once, the answers of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Metrics(TypedDict):
    """What standard clients ignore: how speculation went; see `engine.outputs`."""

    speculative_decoding: dict[str, Any]
