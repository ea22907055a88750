"""Chat completions: the request that is accepted, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from engine.sampling_params import MAX_LOGPROBS
from server.protocol.chat_messages import (
    MAX_TOOLS,
    AllowedToolsChoice,
    ChatMessage,
    ChatTool,
    NamedTool,
    Prediction,
)
from server.protocol.completions import PromptLogprobs
from server.protocol.provenance import Provenance
from server.protocol.sampling import MAX_MESSAGES, Labels, SamplingFields
from server.protocol.usage import Metrics, Usage
from server.protocol.wire import WireModel


class ChatCompletionRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`.

    `safety_identifier` and `prompt_cache_key` are labels like `user`: the prefix cache finds equal
    beginnings by itself. There is one tier of service, whichever is asked for.
    """

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "verbosity": ("medium",),
        "moderation": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "chat_template": (),
        "documents": ([],),
        "best_of": (1,),
        "echo": (False,),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    prediction: Prediction | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatLabels(WireModel):
    """The body of `POST /v1/chat/completions/{completion_id}`."""

    metadata: Labels | None = None


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


class AnswerFunction(TypedDict, total=False):
    """What a call names and hands over; in a stream the name comes once, arguments in bits."""

    name: str
    arguments: str


class AnswerToolCall(TypedDict):
    """One call of an answer."""

    id: str
    type: Literal["function"]
    function: AnswerFunction


class ChunkToolCall(TypedDict):
    """What a chunk adds to one call; all but `index` and `arguments` come once."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: AnswerFunction


class AnswerMessage(TypedDict):
    """The whole answer; `content` is null where there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[AnswerToolCall]]


class ChatChoice(TypedDict):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChatCompletion(TypedDict):
    """The answer, whole; once it is stored it has the caller's labels."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: Literal["default"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[PromptLogprobs]
    metrics: NotRequired[Metrics]
    metadata: NotRequired[dict[str, str]]


class ChatDelta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ChunkToolCall]


class ChatChunkChoice(TypedDict):
    """What a chunk adds to one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]


class ChatChunk(TypedDict):
    """One event of a streamed answer; `usage` is there when asked for, for `metrics` see there."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: Literal["default"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    metrics: NotRequired[Metrics]
    provenance: NotRequired[Provenance]
