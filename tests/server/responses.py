"""What tests of the Responses API share: strict readers of the SDK's types, and clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from engine.config import EngineConfig, ModelConfig
from engine.request import Request
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import AnswerFn, FakeCore
from tests.server.harness import MODEL, Api, saying

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

# Knows tools, calls and thinking; the marks of calls tell in which format they are.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | map(attribute='function.name') | join(',') }}{% endif %}"
    "{% for message in messages %}"
    "<{{ message['role'] }}>"
    "{% if message.get('reasoning_content') %}<think>{{ message['reasoning_content'] }}</think>"
    "{% endif %}{{ message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}"
    "<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def read_response(answer: httpx.Response) -> Response:
    """Check that an answer is a response as the SDK's types have it, strictly."""
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=True)


def read_events(answer: httpx.Response, *, first: int = 0) -> list[Any]:
    """Check a stream's frame, numbers and types, and give its events as the SDK has them."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "\r" not in answer.text
    frames = answer.text.split("\n\n")
    assert frames.pop() == ""
    events = []
    for number, frame in enumerate(frames, start=first):
        name, data = frame.split("\n")
        fields = json.loads(data.removeprefix("data: "))
        assert name == f"event: {fields['type']}"
        assert fields["sequence_number"] == number
        events.append(_EVENT.validate_python(fields, strict=True))
        assert events[-1].type == fields["type"]
    return events


def kinds(events: list[Any]) -> list[str]:
    """Give the types of events, repeated ones once."""
    found = [event.type.removeprefix("response.") for event in events]
    return [kind for kind, before in zip(found, [None, *found], strict=False) if kind != before]


async def respond(api: Api, **body: Any) -> httpx.Response:
    """Post a request; its input is `hi` unless it is given."""
    return await api.post("/v1/responses", **{"input": "hi", **body})


async def until_over(api: Api, response_id: str) -> httpx.Response:
    """Ask for a response until it is no longer made."""
    while True:
        answer = await api.http.get(f"/v1/responses/{response_id}")
        if answer.json()["status"] not in ("queued", "in_progress"):
            return answer
        await asyncio.sleep(0)


async def call_and_leave(api: Api, **body: Any) -> None:
    """Post a request and hang up before the answer."""
    sent = json.dumps({"model": MODEL, "input": "hi", **body}).encode()
    messages = [{"type": "http.request", "body": sent, "more_body": False}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def swallow(_message: Any) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/responses",
        "raw_path": b"/v1/responses",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "client": ("client", 1),
        "server": ("server", 80),
    }
    await asyncio.wait_for(api.app(scope, receive, swallow), 5)


class Listener:
    """Answers like another, and remembers every prompt as text.

    Attributes:
        prompts: in their order.
    """

    def __init__(self, *texts: str) -> None:
        self.prompts: list[str] = []
        self._answers = [saying(text) for text in texts]

    def __call__(self, request: Request, position: int) -> int:
        if position == 0:
            self.prompts.append(byte_tokenizer().decode(request.prompt_token_ids))
        answer: AnswerFn = self._answers[min(len(self.prompts), len(self._answers)) - 1]
        return answer(request, position)


def roomy(answer: AnswerFn) -> FakeCore:
    """An engine whose context holds a conversation."""
    return FakeCore(EngineConfig(model=ModelConfig(max_model_len=4000)), answer)


@asynccontextmanager
async def sdk(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK's client of a server under test."""
    transport = httpx.ASGITransport(app=api.app, raise_app_exceptions=False)
    async with openai.AsyncOpenAI(
        base_url="http://localhost/v1",
        api_key="none",
        http_client=httpx.AsyncClient(transport=transport),
        max_retries=0,
    ) as client:
        yield client
