"""Chat completions: the request that is accepted, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from pydantic import Field

from server.protocol.sampling import SamplingFields
from server.protocol.usage import Metrics, Usage
from server.protocol.wire import WireModel


class TextPart(WireModel):
    """A part of a message; only text is served."""

    place: ClassVar[str] = "messages.content"

    type: Literal["text"]
    text: str


class ChatMessage(WireModel):
    """One message; answers of the `openai` SDK can be sent back as they are, and lm_eval's too."""

    place: ClassVar[str] = "messages"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "type": ("text",),
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "audio": (),
        "refusal": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None


class ChatCompletionRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "reasoning_effort": (),
        "verbosity": ("medium",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "moderation": (),
        "prompt_cache_key": (),
        "prompt_cache_retention": (),
        "safety_identifier": (),
        "best_of": (1,),
        "echo": (False,),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "structured_outputs": (),
        "prompt_logprobs": (),
        "cache_salt": (),
        "speculation": (),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TopLogprob(TypedDict):
    """One alternative at a place of the answer."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """One token of the answer and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """One entry per token."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(TypedDict):
    """The whole answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChatCompletion(TypedDict):
    """The answer, whole."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: Metrics


class ChatDelta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    """What a chunk adds to one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]


class ChatChunk(TypedDict):
    """One event of a streamed answer; `usage` is there when it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    metrics: NotRequired[Metrics]
