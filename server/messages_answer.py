"""Messages: a running assistant turn in the shape of Anthropic's API, as events or whole.

An answer that is not streamed is the stream, collected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from engine.errors import OutdraftError
from server.generation import Generation
from server.messages_blocks import BlockCollector, BlockWriter
from server.messages_errors import messages_error_body
from server.messages_thinking import shows_thinking
from server.protocol.messages import MessagesRequest
from server.protocol.messages_answer import (
    AnsweredMessage,
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessageUsage,
    StopReason,
)
from server.streaming import named_frame
from server.turn import Turn, TurnDelta


class MessageAnswer:
    """A message that is being answered.

    Args:
        turn: what answers it.
        body: the request.
        model: the name to answer with.
    """

    def __init__(self, turn: Turn, body: MessagesRequest, model: str) -> None:
        self._turn = turn
        self._body = body
        self._model = model

    @property
    def generation(self) -> Generation:
        """What is generated for it; leaving its context frees it."""
        return self._turn.generation

    async def stream(self) -> AsyncIterator[MessageEvent]:
        """Give the events; the first waits for the first step, which knows the cached tokens."""
        writer = BlockWriter(shows_thinking=shows_thinking(self._body))
        last: TurnDelta | None = None
        async for delta in self._turn:
            if last is None:
                yield {"type": "message_start", "message": self._opening()}
            last = delta
            for event in writer.add(delta):
                yield event
        assert last is not None, "a turn ends with a reason"
        for event in writer.finish():
            yield event
        yield self._ending(_end(last, writer.has_tool_use, self._is_limit_reached()))
        yield {"type": "message_stop"}

    async def frames(self) -> AsyncIterator[bytes]:
        """Give the events as they are sent; a failure is the last of them."""
        try:
            async for event in self.stream():
                yield named_frame(event)
        except OutdraftError as error:
            # The status is sent already, so the failure is told inside the stream.
            self.generation.fail(error)
            yield named_frame(messages_error_body(error))

    async def collect(self) -> AnsweredMessage:
        """Give the message whole."""
        collector = BlockCollector()
        message = self._opening()
        async for event in self.stream():
            if event["type"] == "message_delta":
                message["stop_reason"] = event["delta"]["stop_reason"]
                message["stop_sequence"] = event["delta"]["stop_sequence"]
                message["usage"] = event["usage"]
                if "metrics" in event:
                    message["metrics"] = event["metrics"]
            elif event["type"] != "message_start" and event["type"] != "message_stop":
                collector.add(event)
        message["content"] = collector.blocks
        return message

    def _opening(self) -> AnsweredMessage:
        return {
            "id": self.generation.call_id.replace("-", "_", 1),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": self._usage(),
        }

    def _ending(self, end: MessageEnd) -> MessageDelta:
        event: MessageDelta = {"type": "message_delta", "delta": end, "usage": self._usage()}
        asked = self._body.speculation
        if self.generation.is_synthetic or (asked is not None and asked.report):
            event["metrics"] = self.generation.speculation
        return event

    def _usage(self) -> MessageUsage:
        usage = self._turn.usage
        num_cached = usage["prompt_tokens_details"]["cached_tokens"]
        details = usage["completion_tokens_details"]
        return {
            "input_tokens": usage["prompt_tokens"] - num_cached,
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"thinking_tokens": details["reasoning_tokens"]},
            "cache_read_input_tokens": num_cached,
            "cache_creation_input_tokens": 0,
        }

    def _is_limit_reached(self) -> bool:
        return self.generation.usage["completion_tokens"] >= self._body.max_tokens


def _end(last: TurnDelta, has_tool_use: bool, is_limit_reached: bool) -> MessageEnd:
    """Say why the answer ended; without its limit being reached, the context was full."""
    reason: StopReason = "tool_use" if has_tool_use else "end_turn"
    stop_text = last.stop_reason if isinstance(last.stop_reason, str) else None
    if last.finish_reason == "length":
        reason = "max_tokens" if is_limit_reached else "model_context_window_exceeded"
    elif stop_text is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": stop_text, "stop_details": None}
