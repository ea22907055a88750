"""Prompts as files carry them (JSON lines) and as the engine takes them (token ids).

A line holds one of `prompt` (text), `prompt_token_ids` and `messages`. It knows tokenizers and
chat templates; it refuses to know what is generated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InvalidRequestError
from engine.tokenization import Tokenizer

PROMPT_KEYS = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """Turns texts and chats into token ids.

    Attributes:
        model: as it was named, for errors.
        tokenizer: the model's; None where its folder has none.
    """

    model: str
    tokenizer: Tokenizer | None

    def encode(self, text: str) -> list[int]:
        """Turn a text into prompt tokens.

        Raises:
            InvalidRequestError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidRequestError(
                f"prompt: {self.model} has no tokenizer; give token ids.", param="prompt"
            )
        return list(self.tokenizer.encode(text))

    def render_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Turn a conversation into prompt tokens that end where the assistant speaks.

        Raises:
            InvalidRequestError: there is no tokenizer, or it has no chat template.
        """
        if not self.has_chat_template or self.tokenizer is None:
            raise InvalidRequestError(
                f"messages: {self.model} has no chat template; give a prompt.", param="messages"
            )
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer.encode(str(text), add_special_tokens=False))

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be rendered."""
        return self.tokenizer is not None and bool(self.tokenizer.chat_template)


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of a file of prompts.

    Attributes:
        place: the file's role and the line's number, for errors.
        content: exactly one of `PROMPT_KEYS`, and whatever else the line holds.
    """

    place: str
    content: dict[str, Any]

    def token_ids(self, tokenizer: PromptTokenizer) -> list[int]:
        """Turn the line into prompt tokens.

        Raises:
            InvalidRequestError: its value has the wrong type, or needs a tokenizer or template.
        """
        if "messages" in self.content:
            return tokenizer.render_chat(self._list_of(dict, "messages", "messages"))
        if "prompt" in self.content:
            text = self.content["prompt"]
            if not isinstance(text, str):
                raise InvalidRequestError(f"{self.place}: prompt is not a text.", param="prompt")
            return tokenizer.encode(text)
        return self._list_of(int, "prompt_token_ids", "integers")

    def _list_of(self, kind: type[Any], key: str, items: str) -> list[Any]:
        value = self.content[key]
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise InvalidRequestError(f"{self.place}: {key} is not a list of {items}.", param=key)
        return value


def read_prompt_lines(path: Path, role: str) -> list[PromptLine]:
    """Read a file of prompts; empty lines are passed over.

    Args:
        path: the file.
        role: what the file is to the caller, for errors.

    Raises:
        InvalidRequestError: the file cannot be read, or a line is no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequestError(f"{role}: cannot read {path}: {reason}.") from error
    lines = enumerate(text.splitlines(), start=1)
    return [_line(text, f"{role}: line {number}") for number, text in lines if text.strip()]


def _line(text: str, place: str) -> PromptLine:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"{place} is no JSON: {error}.") from error
    given = [key for key in PROMPT_KEYS if isinstance(content, dict) and key in content]
    if len(given) != 1:
        raise InvalidRequestError(f"{place} needs exactly one of {', '.join(PROMPT_KEYS)}.")
    return PromptLine(place, content)
