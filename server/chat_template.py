"""Renders conversations with the tokenizer's own template.

The template comes with the model and runs in transformers' immutable sandbox. What it refuses, or
cannot handle, is the caller's to know. A template says what it knows by the names it mentions:
tools, reasoning efforts and roles that it never mentions would be dropped without a word.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from engine.errors import InvalidRequestError
from engine.tokenization import Tokenizer
from server.tools import Tool

Message = Mapping[str, Any]


class RenderedChat(NamedTuple):
    """A prompt, as text and as tokens."""

    text: str
    token_ids: list[int]


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    check_text: Callable[[str], None] = lambda _text: None,
) -> RenderedChat:
    """Turn a conversation into the prompt that the assistant's turn follows.

    Args:
        tokenizer: with a chat template.
        messages: at least one, as templates take them; arguments of calls are objects.
        tools: what may be called.
        options: further variables for the template; not the template itself.
        add_generation_prompt: whether the prompt ends where the assistant's turn begins.
        continue_final_message: whether the prompt ends inside the last message.
        check_text: refuses, by raising, what is not worth being made into tokens.

    Raises:
        InvalidRequestError: there is no template, or it does not take or know what is given.
    """
    template = template_text(tokenizer, has_tools=bool(tools))
    _check_knowledge(template, messages, tools, options or {})
    _check_ending(messages, add_generation_prompt, continue_final_message)
    _check_options(tokenizer, options or {})
    variables = {
        **(options or {}),
        "tools": [_openai_tool(tool) for tool in tools] or None,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
    }
    text = _render(tokenizer, _with_known_roles(messages, template), variables)
    check_text(text)
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return RenderedChat(text, token_ids)


def template_text(tokenizer: Tokenizer, *, has_tools: bool = False) -> str:
    """Give the template that will be used; some models have another one for tools.

    Raises:
        InvalidRequestError: the tokenizer has none.
    """
    if tokenizer.chat_template is None:
        raise InvalidRequestError(
            "This model's tokenizer has no chat template; use /v1/completions instead.",
            param="messages",
            code="no_chat_template",
        )
    text: str = tokenizer.get_chat_template(tools=[{}] if has_tools else None)
    return text


def effort_options(tokenizer: Tokenizer, effort: str | None) -> dict[str, str | bool]:
    """Give the template's variables for how much the model shall think.

    Templates that only switch thinking on and off are switched off by the effort `none`.

    Raises:
        InvalidRequestError: the tokenizer has no template.
    """
    if effort is None:
        return {}
    template = template_text(tokenizer)
    if effort == "none" and "reasoning_effort" not in template and "enable_thinking" in template:
        return {"enable_thinking": False}
    return {"reasoning_effort": effort}


def _render(tokenizer: Tokenizer, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    try:
        return _apply(tokenizer, messages, variables)
    except TypeError as error:
        # Some templates join the arguments to the text, so they want JSON and no object.
        if not any(message.get("tool_calls") for message in messages):
            raise _refused_by_template(error) from error
    except (jinja2.TemplateError, ValueError, KeyError) as error:
        raise _refused_by_template(error) from error
    try:
        return _apply(tokenizer, [_with_json_arguments(m) for m in messages], variables)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise _refused_by_template(error) from error


def _apply(tokenizer: Tokenizer, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **variables))


def _refused_by_template(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(
        f"The model's chat template does not take these messages: {error}",
        param="messages",
        code="chat_template_error",
    )


def _check_knowledge(
    template: str, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Any]
) -> None:
    """Refuse what the template would leave out of the prompt."""
    if tools and "tools" not in template:
        raise _unknown("tools", "tools")
    for place, message in enumerate(messages):
        if message.get("tool_calls") and "tool_calls" not in template:
            raise _unknown("tool calls", f"messages[{place}].tool_calls")
    if "reasoning_effort" in options and "reasoning_effort" not in template:
        raise _unknown("reasoning efforts", "reasoning_effort")


def _unknown(what: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param}: the model's chat template does not know {what}.",
        param=param,
        code="unsupported_parameter",
    )


def _check_ending(
    messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool
) -> None:
    if not continue_final_message:
        return
    if add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt cannot both be true: a turn either "
            "goes on or begins.",
            param="continue_final_message",
            code="invalid_value",
        )
    if not messages[-1].get("content"):
        raise InvalidRequestError(
            "continue_final_message: the last message has no text to continue.",
            param="continue_final_message",
            code="invalid_value",
        )


def _check_options(tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
    """Refuse variables that would steer the rendering and not the template."""
    reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
    for name in options:
        if name in reserved:
            raise InvalidRequestError(
                f"chat_template_kwargs.{name} cannot be set by a request.",
                param="chat_template_kwargs",
                code="unsupported_parameter",
            )


def _with_known_roles(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Give developers' messages as the system's, unless the template knows developers."""
    known = [dict(message) for message in messages]
    if "developer" not in template:
        for message in known:
            if message["role"] == "developer":
                message["role"] = "system"
    return known


def _with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": _json(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _json(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _openai_tool(tool: Tool) -> dict[str, Any]:
    """Give a tool as templates take it, which is OpenAI's way."""
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}
