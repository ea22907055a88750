"""Tokens of a text, and text of tokens: requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from server.protocol.chat_messages import MAX_TOOLS, ChatMessage, ChatTool
from server.protocol.sampling import MAX_MESSAGES
from server.protocol.wire import WireModel

MAX_DETOKENIZED_TOKENS = 2**20


class TokenizeRequest(WireModel):
    """The body of `POST /tokenize`: a `prompt`, or `messages` as a chat would render them.

    Attributes:
        add_special_tokens: whether the tokenizer opens the text as it opens every text; by default
            it does so for a prompt, since templates open theirs themselves.
        return_token_strs: whether the tokens are also given as the vocabulary spells them.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeAnswer(TypedDict):
    """The tokens of a text, and how many fit the model's context."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(WireModel):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=MAX_DETOKENIZED_TOKENS)]


class DetokenizeAnswer(TypedDict):
    """The text of tokens."""

    prompt: str
