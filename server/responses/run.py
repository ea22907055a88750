"""One response being made: the numbered events of its turn, and the response object as it grows.

Whole answers are streams whose events nobody reads.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator

from engine.errors import OutdraftError
from server.errors import error_body
from server.protocol.responses import ResponsesRequest
from server.responses.open_items import Event
from server.responses.output import Output
from server.responses.response_object import (
    Progress,
    ResponseObject,
    response_head,
    response_object,
    response_usage,
)
from server.sampling import wants_speculation_report
from server.served import Served
from server.streaming import named_frame
from server.turn import Turn, TurnDelta

logger = logging.getLogger(__name__)


class ResponseRun:
    """A response from its creation to its end; it is streamed or collected, once.

    Args:
        served: what is served.
        body: the request.
        turn: started for it.
        on_end: hears once that nothing more will come.

    Attributes:
        turn: as given; leave the context of its generation when done.
        frames: the events so far, as they are sent; None where none are kept.
    """

    def __init__(
        self,
        served: Served,
        body: ResponsesRequest,
        turn: Turn,
        on_end: Callable[[ResponseRun], None],
    ) -> None:
        self.turn = turn
        self.frames: list[bytes] | None = [] if body.background and body.stream else None
        self._on_end = on_end
        self._has_report = turn.generation.is_synthetic or wants_speculation_report(body)
        self._head = response_head(
            body, response_id=self.response_id, model=served.check_model(body.model)
        )
        self._output = Output(
            served.tokens, is_sealed="reasoning.encrypted_content" in (body.include or [])
        )
        self._progress = Progress("queued" if body.background else "in_progress")
        self._num_events = 0

    @property
    def response_id(self) -> str:
        """The response's id, spelled as clients know it."""
        return self.turn.generation.call_id.replace("-", "_", 1)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._progress.is_over

    def as_object(self) -> ResponseObject:
        """Give the response as it is now."""
        shown = response_object(
            self._head,
            self._progress,
            self._output.items("incomplete" if self.is_over else "in_progress"),
            response_usage(self.turn.usage) if self.is_over else None,
        )
        if self.is_over and self._has_report:
            shown["metrics"] = self.turn.generation.speculation
        return shown

    async def stream(self) -> AsyncIterator[bytes]:
        """Give the events as they are sent, numbered from 0; a failure is the last of them."""
        for event in self._open():
            yield self._framed(event)
        try:
            async for event in self._advance():
                frame = self._framed(event)
                if self.is_over:
                    self._on_end(self)
                yield frame
        except Exception as error:
            frame = self._framed(self._fail(error))
            self._on_end(self)
            yield frame

    async def collect(self) -> ResponseObject:
        """Give the response whole.

        Raises:
            EngineError: the engine failed.
        """
        async for _ in self._advance():
            pass
        self._on_end(self)
        return self.as_object()

    def cancel(self) -> None:
        """Give up what has not ended."""
        self.turn.generation.close()
        self._progress.end("cancelled")
        self._on_end(self)

    def _open(self) -> Iterator[Event]:
        yield self._told("created")
        yield self._told(self._progress.status)

    async def _advance(self) -> AsyncIterator[Event]:
        async for delta in self.turn:
            if self._progress.status == "queued":
                self._progress.status = "in_progress"
                yield self._told("in_progress")
            for event in self._output.take(delta):
                yield event
            if delta.finish_reason is not None:
                for event in self._finish(delta):
                    yield event

    def _finish(self, delta: TurnDelta) -> Iterator[Event]:
        is_cut = delta.finish_reason == "length"
        yield from self._output.finish("incomplete" if is_cut else "completed")
        self._progress.end("incomplete" if is_cut else "completed")
        yield self._told(self._progress.status)

    def _fail(self, error: Exception) -> Event:
        """Note a failure; the status of the answer is sent already, so it is told inside."""
        self.turn.generation.fail(error)
        if not isinstance(error, OutdraftError):
            logger.error("response_failed id=%s", self.response_id, exc_info=error)
        message = error_body(error)["error"]["message"]
        self._progress.error = {"code": "server_error", "message": message}
        self._progress.end("failed")
        return self._told("failed")

    def _told(self, kind: str) -> Event:
        return {"type": f"response.{kind}", "response": self.as_object()}

    def _framed(self, event: Event) -> bytes:
        frame = named_frame({"type": event["type"], "sequence_number": self._num_events, **event})
        self._num_events += 1
        if self.frames is not None:
            self.frames.append(frame)
        return frame
