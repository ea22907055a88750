"""From the body of a request to the assistant turn that it asks for."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from engine.errors import ContextLengthExceededError, InvalidRequestError
from engine.sampling_params import SamplingParams
from engine.structured_output import StructuredOutput
from server.answer_shape import answer_shape
from server.chat_template import effort_options
from server.protocol.responses import (
    AllowedTools,
    NamedFunction,
    PromptFields,
    ResponsesRequest,
    TextFormat,
)
from server.responses.conversation import as_messages, droppable
from server.responses.items import Item
from server.sampling import sampling_params
from server.served import Served
from server.structured_outputs import json_object_output, json_schema_output
from server.tools import ANY_TOOL, Tool, ToolChoice
from server.turn import Turn, TurnRequest, render_turn, start_turn

_LOGPROBS = "message.output_text.logprobs"
# What a turn calls its fields, and what they are called here.
_NAMES_HERE = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "reasoning_effort": "reasoning.effort",
}


def start_response_turn(served: Served, body: ResponsesRequest, items: Sequence[Item]) -> Turn:
    """Check a request and give it to the engine.

    Args:
        served: what is served.
        body: the request.
        items: the whole conversation, oldest first.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    served.check_ready()
    with _own_names():
        params = sampling_params(
            body,
            served.tokenizer,
            max_tokens=body.max_output_tokens,
            logprobs=_num_logprobs(body),
        )
        request = replace(
            _prompt(served, body, items, params),
            response_format=_shape(body),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            timeout_s=body.timeout,
        )
        if body.truncation == "auto":
            request = _truncated(served, request, items)
        return start_turn(served, request)


def offered_tools(body: PromptFields) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Give what may be called, and whether and what must be.

    Raises:
        InvalidRequestError: two tools of one name, or a choice that no tool meets.
    """
    tools = tuple(
        Tool(
            name=tool.name,
            parameters=tool.parameters or {"type": "object", "properties": {}},
            description=tool.description,
            is_strict=bool(tool.strict),
        )
        for tool in body.tools or []
    )
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _invalid("tools", f"two tools are called {twice!r}")
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        return tools, ToolChoice(mode="required", name=_known(choice, names))
    if isinstance(choice, AllowedTools):
        allowed = {_known(tool, names) for tool in choice.tools}
        kept = tuple(tool for tool in tools if tool.name in allowed)
        return kept, ToolChoice(mode=choice.mode)
    if choice == "required" and not tools:
        raise _invalid("tool_choice", "'required' needs tools")
    return tools, ANY_TOOL if choice is None else ToolChoice(mode=choice)


def template_options(served: Served, body: PromptFields) -> dict[str, Any]:
    """Give the variables of the chat template that a body sets.

    Raises:
        InvalidRequestError: the tokenizer has no template.
    """
    options = dict(body.chat_template_kwargs or {})
    effort = body.reasoning.effort if body.reasoning is not None else None
    return options | effort_options(served.tokenizer, effort)


def count_input_tokens(served: Served, body: PromptFields, items: Sequence[Item]) -> int:
    """Count the tokens of the prompt that a request would have.

    Raises:
        InvalidRequestError: the model's template does not take or know what is given.
        EngineNotReadyError: the tokenizer is still loading.
    """
    with _own_names():
        return len(render_turn(served, _prompt(served, body, items, SamplingParams())).token_ids)


def _truncated(served: Served, request: TurnRequest, items: Sequence[Item]) -> TurnRequest:
    """Leave out the oldest exchanges, as few as it takes; the fewest are found by halving."""
    params = request.params
    num_wanted = params.max_tokens or max(params.min_tokens, 1)
    room = served.engine.info.max_total_tokens - num_wanted
    instructions = request.messages[: len(request.messages) - len(as_messages(items, None))]
    cuts = [
        replace(request, messages=[*instructions, *as_messages(cut, None)])
        for cut in [list(items), *droppable(items)]
    ]
    place = bisect_left(
        cuts, -room, key=lambda cut: -_num_prompt_tokens(served, cut), hi=len(cuts) - 1
    )
    return cuts[place]


def _num_prompt_tokens(served: Served, request: TurnRequest) -> int:
    try:
        return len(render_turn(served, request).token_ids)
    except ContextLengthExceededError:
        return sys.maxsize


def _prompt(
    served: Served, body: PromptFields, items: Sequence[Item], params: SamplingParams
) -> TurnRequest:
    """Give a turn as far as its prompt goes."""
    tools, choice = offered_tools(body)
    return TurnRequest(
        kind="resp",
        messages=as_messages(items, body.instructions),
        params=params,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_options=template_options(served, body),
    )


def _num_logprobs(body: ResponsesRequest) -> int | None:
    """Give the alternatives per token; None when no logprobs are wanted."""
    if _LOGPROBS in (body.include or []):
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise _invalid("top_logprobs", f"include must have {_LOGPROBS!r} for it")
    return None


def _shape(body: ResponsesRequest) -> StructuredOutput | None:
    shape = answer_shape(body)
    wanted = body.text.format if body.text is not None else None
    if wanted is None or wanted.type == "text":
        return shape
    if shape is not None:
        raise _invalid("text.format", "an answer has one shape, and structured_outputs gives one")
    return _format_shape(wanted)


def _format_shape(wanted: TextFormat) -> StructuredOutput:
    if wanted.type == "json_object":
        return json_object_output()
    for field, value in (("name", wanted.name), ("schema", wanted.json_schema)):
        if value is None:
            raise InvalidRequestError(
                f"text.format.{field}: the type json_schema needs it.",
                param=f"text.format.{field}",
                code="missing_required_parameter",
            )
    assert wanted.json_schema is not None, "it was looked for"
    return json_schema_output(wanted.json_schema, param="text.format.schema")


def _known(tool: NamedFunction, names: Sequence[str]) -> str:
    if tool.name not in names:
        listed = ", ".join(names) or "none are given"
        raise _invalid("tool_choice", f"{tool.name!r} is not one of the tools ({listed})")
    return tool.name


@contextmanager
def _own_names() -> Iterator[None]:
    """Let errors name fields as this wire does."""
    try:
        yield
    except InvalidRequestError as error:
        there = error.param or ""
        here = _NAMES_HERE.get(there)
        if here is not None:
            error.param = here
            error.args = (str(error).replace(f"{there}:", f"{here}:", 1),)
        raise


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}.", param=param, code="invalid_value")
