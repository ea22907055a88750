"""How many tokens the answer to a line took; each wire calls them by other names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec


class _Body(msgspec.Struct):
    usage: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Body).decode


@dataclass(frozen=True, slots=True)
class LineUsage:
    """Tokens.

    Attributes:
        input_tokens: of prompts.
        cached_tokens: of these, found in the prefix cache.
        output_tokens: of answers.
        reasoning_tokens: of these, thinking.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of_body(cls, body: bytes) -> LineUsage:
        """Read what an answer says of itself."""
        usage = _decode(body).usage or {}
        asked = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        said = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        return cls(
            usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
            asked.get("cached_tokens") or 0,
            usage.get("completion_tokens") or usage.get("output_tokens") or 0,
            said.get("reasoning_tokens") or 0,
        )

    @classmethod
    def total(cls, usages: Iterable[LineUsage]) -> LineUsage:
        """Add usages up."""
        given = list(usages)
        return cls(
            sum(usage.input_tokens for usage in given),
            sum(usage.cached_tokens for usage in given),
            sum(usage.output_tokens for usage in given),
            sum(usage.reasoning_tokens for usage in given),
        )
