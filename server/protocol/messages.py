"""Anthropic's Messages: the bodies that are accepted.

`cache_control` is a hint and taken on every block, whatever it says: prefixes are cached anyway.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from engine.errors import InvalidRequestError
from server.protocol.chat_messages import MAX_TOOLS
from server.protocol.sampling import (
    MAX_MESSAGES,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    AllowedTokenIds,
    BadWords,
    LogitBias,
    SpeculationFields,
    StopTokenIds,
    StructuredOutputsFields,
    Timeout,
)
from server.protocol.wire import WireModel

Hint = dict[str, Any] | None
StopSequence = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class TypesServed:
    """Refuses, by name, list entries of types that are not served.

    Args:
        place: the field that holds the list.
        served: the types that are; an entry without a type is the model's to judge.
    """

    def __init__(self, place: str, *served: str) -> None:
        self._place = place
        self._served = served

    def __call__(self, entries: Any) -> Any:
        """Give the entries back unchanged.

        Raises:
            InvalidRequestError: the type of one is not served.
        """
        for entry in entries if isinstance(entries, list) else ():
            kind = entry.get("type") if isinstance(entry, dict) else None
            if isinstance(kind, str) and kind not in self._served:
                raise InvalidRequestError(
                    f"{self._place}: {kind[:64]!r} is not supported by this server; "
                    f"it takes {', '.join(self._served)}.",
                    param=self._place,
                    code="unsupported_parameter",
                )
        return entries


class TextBlock(WireModel):
    """A stretch of text."""

    place: ClassVar[str] = "messages.content"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"citations": ([],)}

    type: Literal["text"]
    text: str
    cache_control: Hint = None


class ThinkingBlock(WireModel):
    """Thinking of an earlier turn, sent back; signatures are not checked."""

    place: ClassVar[str] = "messages.content"

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(WireModel):
    """Thinking that only its maker can read."""

    place: ClassVar[str] = "messages.content"

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(WireModel):
    """A call of an earlier turn, sent back."""

    place: ClassVar[str] = "messages.content"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "caller": ({"type": "direct"},),
        "toolset_name": (),
    }

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Hint = None


class ToolResultBlock(WireModel):
    """What a call gave."""

    place: ClassVar[str] = "messages.content"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"toolset_name": ()}

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | Annotated[
            list[TextBlock], BeforeValidator(TypesServed("messages.content.content", "text"))
        ]
        | None
    ) = None
    is_error: bool | None = None
    cache_control: Hint = None


ContentBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
_BLOCK_TYPES = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


class Message(WireModel):
    """One message; the answers of the `anthropic` SDK can be sent back as they are."""

    place: ClassVar[str] = "messages"

    role: Literal["user", "assistant", "system"]
    content: (
        str
        | Annotated[
            list[Annotated[ContentBlock, Field(discriminator="type")]],
            BeforeValidator(TypesServed("messages.content", *_BLOCK_TYPES)),
        ]
    )


class ToolDefinition(WireModel):
    """A tool that the caller runs."""

    place: ClassVar[str] = "tools"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "defer_loading": (False,),
        "allowed_callers": (["direct"],),
        "eager_input_streaming": (True,),
        "input_examples": ([],),
    }

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Hint = None


class ToolChoiceFields(WireModel):
    """Whether and what must be called; `name` with the type `tool`."""

    place: ClassVar[str] = "tool_choice"

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingEnabled(WireModel):
    """The model is to think; the budget is a target and not a limit."""

    place: ClassVar[str] = "thinking"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"block_binding": ({},)}

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(WireModel):
    """The model is to think where it sees a need."""

    place: ClassVar[str] = "thinking"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"block_binding": ({},)}

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(WireModel):
    """The model is not to think."""

    place: ClassVar[str] = "thinking"

    type: Literal["disabled"]


Thinking = ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled


class OutputFormat(WireModel):
    """What the answer's text must look like."""

    place: ClassVar[str] = "output_config.format"

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(WireModel):
    """The shape of the answer, and how much effort goes into it."""

    place: ClassVar[str] = "output_config"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"task_budget": ()}

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class KeptTurns(WireModel):
    """How many turns keep their thinking."""

    place: ClassVar[str] = "context_management.edits.keep"

    type: Literal["thinking_turns"]
    value: Annotated[int, Field(ge=1)]


class EveryTurn(WireModel):
    """All turns keep their thinking."""

    place: ClassVar[str] = "context_management.edits.keep"

    type: Literal["all"]


class ClearThinking(WireModel):
    """Thinking of older turns is left out of the prompt."""

    place: ClassVar[str] = "context_management.edits"

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | Annotated[KeptTurns | EveryTurn, Field(discriminator="type")] | None = (
        None
    )


class ContextManagement(WireModel):
    """What is left out of the prompt."""

    place: ClassVar[str] = "context_management"

    edits: Annotated[
        list[ClearThinking] | None,
        BeforeValidator(TypesServed("context_management.edits", "clear_thinking_20251015")),
    ] = None


class Metadata(WireModel):
    """The caller's own label; no answer depends on it."""

    place: ClassVar[str] = "metadata"

    user_id: str | None = None


class PromptFields(WireModel):
    """What becomes the prompt: the body of `POST /v1/messages/count_tokens`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mcp_servers": ([],),
        "speed": ("standard",),
        "compaction": (),
    }

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: (
        str | Annotated[list[TextBlock], BeforeValidator(TypesServed("system", "text"))] | None
    ) = None
    tools: (
        Annotated[
            list[ToolDefinition],
            Field(max_length=MAX_TOOLS),
            BeforeValidator(TypesServed("tools", "custom")),
        ]
        | None
    ) = None
    tool_choice: ToolChoiceFields | None = None
    thinking: Annotated[Thinking, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: ContextManagement | None = None
    cache_control: Hint = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(PromptFields):
    """The body of `POST /v1/messages`; what Anthropic's API does not know is named as in chat."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = PromptFields.refused | {
        "billing_policy": (),
        "container": (),
        "diagnostics": ({}, {"previous_message_id": None}),
        "fallback_credit_token": (),
        "fallbacks": ([],),
        "inference_geo": (),
        "thread": (),
    }

    max_tokens: Annotated[int, Field(ge=0)]
    stop_sequences: Annotated[list[StopSequence], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: AllowedTokenIds | None = None
    bad_words: BadWords | None = None
    seed: int | None = None
    min_tokens: int | None = None
    stop_token_ids: StopTokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputsFields | None = None
    speculation: SpeculationFields | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    timeout: Timeout | None = None
