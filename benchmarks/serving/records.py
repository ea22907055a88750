"""One request as it was measured: from the events that came to tokens and times.

A time belongs to an event, and an event may bring several tokens. How many there were in all, the
server's `usage` says; how many in each event, only a server with `continuous_usage_stats`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.http_stream import Reply

_DONE = b"[DONE]"
_OK = 200


@dataclass(slots=True, kw_only=True)
class Record:
    """What became of one request.

    Attributes:
        number: of the request; the same one at every point and in every round.
        due_s: when it should have been sent: at its arrival in an open loop, else when it was.
        sent_s: when it was sent.
        end_s: when its reply ended.
        asked_tokens: `max_tokens`.
        failure: kind of the error; None = a whole answer came.
        finish_reason: as the server said it; None = it did not.
        event_times_s: arrivals of the events that brought tokens.
        event_tokens: tokens of each of these, where the server said; else empty.
        num_prompt_tokens: by the server's usage; None = it told none.
        num_output_tokens: likewise.
        num_cached_tokens: prompt tokens found in a prefix cache; None = not told.
        num_target_passes: passes of the target; None = not told.
    """

    number: int
    due_s: float
    sent_s: float
    end_s: float
    asked_tokens: int
    failure: str | None = None
    finish_reason: str | None = None
    event_times_s: list[float] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_target_passes: int | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from when it was due to the first token."""
        return self.event_times_s[0] - self.due_s if self.event_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token behind the first; None where there is no second, or no count."""
        if self.num_output_tokens is None or self.num_output_tokens < 2 or not self.event_times_s:
            return None
        return (self.event_times_s[-1] - self.event_times_s[0]) / (self.num_output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Seconds from when it was due to the end of the reply."""
        return self.end_s - self.due_s

    @property
    def tokens_by_event(self) -> list[float]:
        """Tokens of each event: as told, or else all alike."""
        if self.event_tokens:
            return list(map(float, self.event_tokens))
        events = len(self.event_times_s)
        return [(self.num_output_tokens or 0) / events] * events


def read_reply(number: int, due_s: float, asked_tokens: int, reply: Reply) -> Record:
    """Turn a reply into a record."""
    record = Record(
        number=number,
        due_s=due_s,
        sent_s=reply.sent_s,
        end_s=reply.end_s,
        asked_tokens=asked_tokens,
        failure=reply.failure,
    )
    has_ended = _read_events(record, reply)
    if reply.status is not None and reply.status != _OK:
        record.failure = f"HTTP {reply.status}"
    elif record.failure == "broken stream" and has_ended:
        record.failure = None
    elif record.failure is None and not has_ended:
        record.failure = "broken stream" if reply.events else "no stream"
    return record


def _read_events(record: Record, reply: Reply) -> bool:
    """Read the events into the record; returns whether the answer came to its end."""
    totals: list[int | None] = []
    has_ended = any(
        data == _DONE or _read_event(record, time_s, data, totals) for time_s, data in reply.events
    )
    record.event_tokens = _differences(totals)
    return has_ended or record.finish_reason is not None


def _read_event(record: Record, time_s: float, data: bytes, totals: list[int | None]) -> bool:
    """Read one event; returns whether it is a failure, behind which nothing is read."""
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        record.failure = "unreadable event"
        return True
    if event.get("error"):
        record.failure = "error in stream"
        return True
    before = record.num_output_tokens
    _read_usage(record, event)
    grows = (record.num_output_tokens or 0) > (before or 0)
    choices = event.get("choices") or []
    for choice in choices:
        record.finish_reason = choice.get("finish_reason") or record.finish_reason
    if choices and (grows or any(map(_has_text, choices))):
        record.event_times_s.append(time_s)
        totals.append(record.num_output_tokens)
    return False


def _read_usage(record: Record, event: Mapping[str, Any]) -> None:
    usage = event.get("usage")
    if usage:
        record.num_prompt_tokens = usage.get("prompt_tokens")
        record.num_output_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        record.num_cached_tokens = details.get("cached_tokens")
    metrics = event.get("metrics") or (usage or {}).get("metrics") or {}
    speculation = metrics.get("speculative_decoding") or {}
    record.num_target_passes = speculation.get("num_target_passes", record.num_target_passes)


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or choice
    return any(
        delta.get(name)
        for name in ("content", "reasoning_content", "reasoning", "tool_calls", "text")
    )


def _differences(totals: list[int | None]) -> list[int]:
    """Give the tokens of each event from running totals; nothing where one is missing."""
    known = [total for total in totals if total is not None]
    if len(known) != len(totals):
        return []
    return [after - before for before, after in zip([0, *known], known, strict=False)]
