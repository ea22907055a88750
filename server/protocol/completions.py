"""Plain completions: the request that is accepted, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from pydantic import Field

from server.protocol.sampling import SamplingFields
from server.protocol.usage import Metrics, Usage

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": (),
        "response_format": ({"type": "text"},),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "structured_outputs": (),
        "prompt_logprobs": (),
        "cache_salt": (),
        "speculation": (),
    }

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionLogprobs(TypedDict):
    """One entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One answer, or what a chunk adds to it; choices are numbered prompt by prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]


class Completion(TypedDict):
    """The answer, whole, or one event of it; in a stream `usage` is there when asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    metrics: NotRequired[Metrics]
