"""Plain completions: the request that is accepted, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from engine.sampling_params import MAX_LOGPROBS
from server.protocol.chat_messages import Prediction
from server.protocol.provenance import Provenance
from server.protocol.sampling import SamplingFields
from server.protocol.usage import Metrics, Usage

DEFAULT_MAX_TOKENS = 16
MAX_BEST_OF = 20


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`.

    Attributes:
        prompt: one, as text or token ids, or a list of either.
        suffix: what the answer stands before; needs a model with fill-in-the-middle tokens.
        echo: the prompt is part of the text, and of the log probabilities.
        best_of: as many answers are made, and the `n` likeliest of them, token by token, given.
        logprobs: alternatives per token.
        prompt_logprobs: alternatives per prompt token, in a field of their own.
        prediction: what the caller thinks the answer will be; a draft, no more.
        add_special_tokens: whether the tokenizer opens a text as it opens every text.
    """

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "use_beam_search": (False,),
        "truncate_prompt_tokens": (),
        "return_tokens_as_token_ids": (False,),
        "return_token_ids": (False,),
        "spaces_between_special_tokens": (True,),
    }

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prediction: Prediction | None = None
    add_special_tokens: bool | None = None


class CompletionLogprobs(TypedDict):
    """One entry per token in each list; null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(TypedDict):
    """How likely a token was at a place of the prompt; rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionChoice(TypedDict):
    """One answer, or what a chunk adds to it; choices are numbered prompt by prompt.

    `prompt_logprobs`, when asked for, has one entry per prompt token: token id to how likely it
    was, the prompt's own token first; null for the first token.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]
    prompt_logprobs: NotRequired[PromptLogprobs]


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
    provenance: NotRequired[Provenance]
