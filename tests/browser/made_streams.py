"""Answers that no model wrote: streams as the server sends them, of texts that are chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

CHATS = "**/v1/chat/completions"


def told(token: str, index: int) -> dict[str, Any]:
    """Give a token as provenance tells it; every third is the target's own."""
    is_draft = index % 3 != 2
    return {
        "id": index % 4096,
        "text": token,
        "origin": "draft" if is_draft else "target",
        "drafter": "draft_model" if is_draft else None,
        "survival": 0.75,
        "logprob": -0.5,
        "rank": 1,
        "top": [{"id": index % 4096, "text": token, "logprob": -0.5}],
        "cut": False,
    }


def passes_of(tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Give passes of two accepted drafts, one rejected and the target's own each."""
    passes = []
    for start in range(0, len(tokens), 3):
        own = [told(token, start + place) for place, token in enumerate(tokens[start : start + 3])]
        accepted = sum(token["origin"] == "draft" for token in own)
        draft = [{"id": token["id"], "text": token["text"], "survival": 0.5} for token in own]
        passes.append(
            {
                "drafter": "draft_model",
                "proposed": len(own),
                "accepted": accepted,
                "ms": 2.5,
                "draft": draft,
                "tokens": own,
            }
        )
    return passes


def chunks(
    tokens: Sequence[str], *, per_chunk: int = 3, traced: bool = True
) -> list[dict[str, Any]]:
    """Give a chat's chunks."""
    base = {"id": "chatcmpl-made", "object": "chat.completion.chunk", "model": "demo"}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    made = [chunk({"role": "assistant", "content": ""})]
    for start in range(0, len(tokens), per_chunk):
        part = tokens[start : start + per_chunk]
        one = chunk({"content": "".join(part)})
        if traced:
            one["provenance"] = {"index": 0, "passes": passes_of(part)}
        made.append(one)
    made.append(chunk({}, "stop"))
    usage = {"prompt_tokens": 1, "completion_tokens": len(tokens), "total_tokens": 1 + len(tokens)}
    return [*made, {**base, "choices": [], "usage": usage}]


def stream_of(events: Sequence[dict[str, Any]], *, is_whole: bool = True) -> str:
    """Write events as server-sent events."""
    frames = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return frames + "data: [DONE]\n\n" if is_whole else frames


def answer_with(page: Any, body: str) -> None:
    """Let every chat on a page be answered with a stream."""
    page.route(
        CHATS,
        lambda route: route.fulfill(
            status=200, content_type="text/event-stream; charset=utf-8", body=body
        ),
    )
