"""Renders chat messages with the tokenizer's own template.

The template comes with the model and runs in transformers' immutable sandbox. What it refuses, or
cannot handle, is the caller's to know.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from engine.errors import InvalidRequestError
from engine.tokenization import Tokenizer
from server.protocol.chat import ChatMessage


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage], options: dict[str, Any] | None = None
) -> list[int]:
    """Turn messages into the prompt's token ids, ending where the assistant's turn begins.

    Args:
        tokenizer: with a chat template.
        messages: at least one.
        options: further variables for the template; not the template itself.

    Raises:
        InvalidRequestError: there is no template, or it does not take these messages.
    """
    if tokenizer.chat_template is None:
        raise InvalidRequestError(
            "This model's tokenizer has no chat template; use /v1/completions instead.",
            param="messages",
            code="no_chat_template",
        )
    _check_options(tokenizer, options or {})
    conversation = [_plain(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False, **(options or {})
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise InvalidRequestError(
            f"The model's chat template does not take these messages: {error}",
            param="messages",
            code="chat_template_error",
        ) from error
    token_ids: list[int] = tokenizer.encode(str(text), add_special_tokens=False)
    return token_ids


def _check_options(tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
    """Refuse variables that would steer the rendering and not the template."""
    reserved = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in options:
        if name in reserved:
            raise InvalidRequestError(
                f"chat_template_kwargs.{name} cannot be set by a request.",
                param="chat_template_kwargs",
                code="unsupported_parameter",
            )


def _plain(message: ChatMessage) -> dict[str, str]:
    """Give a message as templates expect it: text parts joined by line breaks, no null."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    plain = {"role": message.role, "content": content or ""}
    return plain | ({"name": message.name} if message.name is not None else {})
