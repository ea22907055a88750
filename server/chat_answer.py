"""Chat completions: from a request body to a running answer in chat's shape."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import InvalidRequestError
from engine.request import TokenLogprobs
from server.answer_shape import answer_shape
from server.answers import Answer
from server.chat_messages import conversation, offered_tools
from server.chat_template import effort_options
from server.logprobs import chat_logprobs, prompt_logprobs
from server.protocol.chat import (
    AnswerMessage,
    AnswerToolCall,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
    ChunkToolCall,
)
from server.protocol.usage import Usage
from server.sampling import sampling_params, wants_provenance
from server.served import Served
from server.stored_chats import ChatStore, StoredChat
from server.tools import ToolCallDelta
from server.turn import Turn, TurnDelta, TurnRequest, start_turn


def start_chat(served: Served, body: ChatCompletionRequest, store: ChatStore) -> ChatAnswer:
    """Check a chat request and give it to the engine.

    Args:
        served: what is served.
        body: the request.
        store: keeps the answer if the request says so.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    served.check_model(body.model)
    served.check_ready()
    turn = start_turn(served, turn_request(served, body))
    return ChatAnswer(served, body, turn, store if body.store else None)


def turn_request(served: Served, body: ChatCompletionRequest) -> TurnRequest:
    """Read a chat request as a turn.

    Raises:
        InvalidRequestError: fields contradict each other, or are outside their limits.
        EngineNotReadyError: the tokenizer is still loading.
    """
    tools, tool_choice = offered_tools(body)
    params = sampling_params(
        body, served.tokenizer, max_tokens=_max_tokens(body), logprobs=_num_logprobs(body)
    )
    options = body.chat_template_kwargs or {}
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    return TurnRequest(
        kind="chatcmpl",
        messages=conversation(body.messages),
        params=replace(params, prompt_logprobs=_num_prompt_logprobs(body)),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=answer_shape(body),
        template_options=options | effort_options(served.tokenizer, body.reasoning_effort),
        add_generation_prompt=begins,
        continue_final_message=continues,
        prediction=None if body.prediction is None else body.prediction.text,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        timeout_s=body.timeout,
        wants_provenance=wants_provenance(body),
    )


@dataclass(slots=True)
class CollectedMessage:
    """One whole answer in chat's parts."""

    index: int
    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    tool_calls: list[AnswerToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: TurnDelta, /) -> None:
        """Add what a stream would have sent."""
        self.reasoning.append(delta.reasoning)
        self.content.append(delta.content)
        for call in delta.tool_calls:
            self._add_call(call)
        self.token_ids += delta.tokens.token_ids
        self.logprobs += delta.tokens.logprobs or []
        self.prompt_logprobs += delta.tokens.prompt_logprobs or []
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason

    def message(self) -> AnswerMessage:
        """Give the message of the answer."""
        content = "".join(self.content)
        message: AnswerMessage = {
            "role": "assistant",
            "content": content if content or not self.tool_calls else None,
            "refusal": None,
        }
        reasoning = "".join(self.reasoning)
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.tool_calls):
            assert delta.call_id is not None, "a call begins with its id"
            assert delta.name is not None, "a call begins with its name"
            self.tool_calls.append(
                {
                    "id": delta.call_id,
                    "type": "function",
                    "function": {"name": delta.name, "arguments": delta.arguments},
                }
            )
        else:
            self.tool_calls[delta.index]["function"]["arguments"] += delta.arguments


class ChatAnswer(Answer[TurnDelta, CollectedMessage]):
    """A chat completion.

    Args:
        turn: what is answered.
        store: keeps the answer when it is whole; None = nobody does.
    """

    stream_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self, served: Served, body: ChatCompletionRequest, turn: Turn, store: ChatStore | None
    ) -> None:
        super().__init__(served, body, turn.generation)
        self._body = body
        self._turn = turn
        self._store = store
        self._head["service_tier"] = "default"

    def _deltas(self) -> AsyncIterable[TurnDelta]:
        return self._turn if self._store is None else self._kept_deltas(self._store)

    async def _kept_deltas(self, store: ChatStore) -> AsyncIterator[TurnDelta]:
        choices = [self._new_choice(index) for index in range(self.generation.num_choices)]
        async for delta in self._turn:
            choices[delta.index].add(delta)
            yield delta
        messages = [m.model_dump(exclude_none=True) for m in self._body.messages]
        store.keep(StoredChat(self._whole_answer(choices), messages, self._body.metadata or {}))

    def _new_choice(self, index: int) -> CollectedMessage:
        return CollectedMessage(index)

    def _usage(self) -> Usage:
        return self._turn.usage

    def _whole_answer(self, choices: Sequence[CollectedMessage]) -> dict[str, Any]:
        answer = super()._whole_answer(choices)
        num_top = self._body.prompt_logprobs
        if num_top is not None:
            answer["prompt_logprobs"] = prompt_logprobs(
                self._tokens, self._turn.prompt.token_ids, choices[0].prompt_logprobs, num_top
            )
        return answer

    def _opening(self, index: int) -> list[ChatChunkChoice]:
        return [
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ]

    def _addition(self, delta: TurnDelta) -> ChatChunkChoice:
        choice: ChatChunkChoice = {
            "index": delta.index,
            "delta": _chat_delta(delta),
            "logprobs": self._logprobs(delta.tokens.token_ids, delta.tokens.logprobs),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice

    def _whole(self, choice: CollectedMessage) -> ChatChoice:
        return {
            "index": choice.index,
            "message": choice.message(),
            "logprobs": self._logprobs(choice.token_ids, choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _logprobs(
        self, token_ids: list[int], logprobs: list[TokenLogprobs] | None
    ) -> ChatLogprobs | None:
        if not logprobs:
            return None
        return chat_logprobs(self._tokens, token_ids, logprobs)


def _chat_delta(delta: TurnDelta) -> ChatDelta:
    shown: ChatDelta = {}
    if delta.reasoning:
        shown["reasoning_content"] = delta.reasoning
    if delta.content:
        shown["content"] = delta.content
    if delta.tool_calls:
        shown["tool_calls"] = [_chunk_call(call) for call in delta.tool_calls]
    return shown


def _chunk_call(delta: ToolCallDelta) -> ChunkToolCall:
    """Show what was added to a call; SDKs join names and ids, so these come once."""
    if delta.name is None or delta.call_id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": delta.call_id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


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


def _num_prompt_logprobs(body: ChatCompletionRequest) -> int | None:
    """Give the alternatives per token of the prompt; None when they are not wanted."""
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequestError(
            "prompt_logprobs: they are not streamed; ask for them without stream.",
            param="prompt_logprobs",
            code="unsupported_parameter",
        )
    return body.prompt_logprobs
