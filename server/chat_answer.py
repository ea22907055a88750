"""Chat completions: from a request body to a running answer in chat's shape."""

from __future__ import annotations

from engine.errors import InvalidRequestError
from server.answers import Answer, CollectedChoice
from server.chat_template import render_chat
from server.generation import ChoiceDelta
from server.logprobs import chat_logprobs
from server.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionRequest,
    ChatLogprobs,
)
from server.sampling import sampling_params
from server.served import Served


def start_chat(served: Served, body: ChatCompletionRequest) -> ChatAnswer:
    """Check a chat request and give it to the engine.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    served.check_model(body.model)
    served.check_ready()
    params = sampling_params(
        body, served.tokenizer, max_tokens=_max_tokens(body), logprobs=_num_logprobs(body)
    )
    prompt = render_chat(served.tokenizer, body.messages, body.chat_template_kwargs)
    generation = served.generate("chatcmpl", [prompt], params, body.priority)
    return ChatAnswer(served, body, generation)


class ChatAnswer(Answer):
    """A chat completion."""

    stream_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def _opening(self, index: int) -> list[ChatChunkChoice]:
        return [
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ]

    def _addition(self, delta: ChoiceDelta) -> ChatChunkChoice:
        choice: ChatChunkChoice = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice

    def _whole(self, choice: CollectedChoice) -> ChatChoice:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _logprobs(self, choice: ChoiceDelta | CollectedChoice) -> ChatLogprobs | None:
        if not choice.logprobs:
            return None
        return chat_logprobs(self._tokens, choice.token_ids, choice.logprobs)


def _max_tokens(body: ChatCompletionRequest) -> int | None:
    """Give the answer's limit under either of its names."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequestError(
            f"max_tokens ({old}) and max_completion_tokens ({new}) differ; give one of them.",
            param="max_completion_tokens",
            code="invalid_value",
        )
    return old if new is None else new


def _num_logprobs(body: ChatCompletionRequest) -> int | None:
    """Give the alternatives per token; None when no logprobs are wanted."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequestError(
            "top_logprobs: logprobs must be true for it.",
            param="top_logprobs",
            code="invalid_value",
        )
    return None
