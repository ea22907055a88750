"""Responses: the requests that are accepted."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from server.protocol.chat_messages import MAX_TOOLS
from server.protocol.responses_items import InputItem, form_of, kind_of
from server.protocol.sampling import MAX_MESSAGES, SamplingFields, StreamOptions
from server.protocol.wire import WireModel

Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class FunctionTool(WireModel):
    """A function that may be called; other types of tools are not served."""

    place: ClassVar[str] = "tools"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class NamedFunction(WireModel):
    """One of the functions, by its name."""

    place: ClassVar[str] = "tool_choice"

    type: Literal["function"]
    name: str


class AllowedTools(WireModel):
    """The functions that may be called this time."""

    place: ClassVar[str] = "tool_choice"

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1)]


class ReasoningFields(WireModel):
    """How much to think; `summary: "auto"` gives none, for what was thought is given itself."""

    place: ClassVar[str] = "reasoning"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "summary": ("auto",),
        "generate_summary": ("auto",),
        "context": ("auto",),
        "mode": ("standard",),
    }

    effort: str | None = None


class TextFormat(WireModel):
    """What the answer's text must look like; `name`, `schema` and `strict` are json_schema's."""

    place: ClassVar[str] = "text.format"

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFields(WireModel):
    """How the answer's text is written."""

    place: ClassVar[str] = "text"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


def _choice_kind(choice: Any) -> str:
    return kind_of(choice, ("function", "allowed_tools"), "tool_choice", default="str")


def _check_tool(tool: Any) -> Any:
    """Refuse tools of other types by their type, before their fields are read."""
    kind_of(tool, ("function",), "tools", default="function")
    return tool


Tool = Annotated[FunctionTool, BeforeValidator(_check_tool)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[str]")]
    | Annotated[NamedFunction, Tag("[function]")]
    | Annotated[AllowedTools, Tag("[allowed_tools]")],
    Discriminator(_choice_kind),
]


Input = Annotated[
    Annotated[str, Tag("[str]")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), Tag("[list]")],
    Discriminator(form_of),
]


class PromptFields(WireModel):
    """The fields that the prompt is made of, and the prompt alone."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningFields | None = None
    text: TextFields | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class InputTokensRequest(PromptFields):
    """The body of `POST /v1/responses/input_tokens`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"conversation": (), "personality": ()}


class ResponsesStreamOptions(StreamOptions):
    """What a stream sends beside the answer; its last event has the usage, asked for or not."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "include_obfuscation": (False,),
        "include_usage": (True,),
        "continuous_usage_stats": (False,),
    }


class ResponsesRequest(PromptFields, SamplingFields):
    """The body of `POST /v1/responses`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background_options": ({}, {"completion_window": "soonest"}),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "max_tokens": (),
        "max_tool_calls": (),
        "moderation": (),
        "n": (1,),
        "prompt": (),
        "prompt_cache_options": ({}, {"mode": "implicit"}),
        "prompt_cache_retention": ("in_memory",),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
    }

    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Include] | None = None
    store: bool | None = None
    background: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
