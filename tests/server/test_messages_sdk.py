"""The `anthropic` SDK against this server: answers, streams, tool loops, counts, exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from engine.config import EngineConfig, ModelConfig
from engine.request import Request
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import AnswerFn, FakeCore, RefusingCore
from tests.server.harness import MODEL, Api, run, saying, serving
from tests.server.test_messages import CALL, TEMPLATE

anthropic = pytest.importorskip("anthropic")
httpx2 = pytest.importorskip("httpx2")

Client = anthropic.AsyncAnthropic
ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 300,
    "messages": [{"role": "user", "content": "hi"}],
}
LOOK = {
    "name": "look",
    "description": "Looks somewhere.",
    "input_schema": {"type": "object", "properties": {"where": {"type": "string"}}},
}


class Sight(BaseModel):
    """A shape for answers."""

    colour: str
    size: int


@asynccontextmanager
async def talking(
    answer: str | AnswerFn = "hello", *, core: FakeCore | None = None
) -> AsyncIterator[tuple[Any, Api]]:
    """Give an SDK client of a server in this process, and the server."""
    config = EngineConfig(model=ModelConfig(max_model_len=2000))
    core = core or FakeCore(config, answer=saying(answer) if isinstance(answer, str) else answer)
    async with serving(core=core, template=TEMPLATE) as api:
        transport = httpx2.ASGITransport(app=api.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport) as http:
            yield (
                Client(http_client=http, base_url="http://localhost", api_key="x", max_retries=0),
                api,
            )


def answering(results: dict[str, str]) -> AnswerFn:
    """Answer a prompt by the first of some texts that is in it."""
    tokenizer = byte_tokenizer()

    def answer(request: Request, position: int) -> int:
        prompt = tokenizer.decode(request.prompt_token_ids)
        text = next(said for found, said in results.items() if found in prompt)
        return saying(text)(request, position)

    return answer


def test_create_gives_a_message() -> None:
    async def scenario() -> None:
        async with talking() as (client, _):
            message = await client.messages.create(**ASKED)
            assert message.content[0].text == "hello"
            assert message.stop_reason == "end_turn"
            assert message.usage.output_tokens == 6
            assert message._request_id

    run(scenario)


def test_the_streaming_helper_puts_the_same_message_together() -> None:
    async def scenario() -> None:
        answer = f"<think>hm</think>I look.{CALL}"
        async with talking(answer) as (client, _):
            whole = await client.messages.create(**ASKED, tools=[LOOK])
            async with client.messages.stream(**ASKED, tools=[LOOK]) as stream:
                kinds = [event.type async for event in stream]
                streamed = await stream.get_final_message()
            assert {"thinking", "signature", "text", "input_json"} <= set(kinds)
            assert [b.type for b in streamed.content] == ["thinking", "text", "tool_use"]
            for message in (whole, streamed):
                message.id = message.content[2].id = ""
            assert streamed.to_dict() == whole.to_dict()

    run(scenario)


def test_text_stream_gives_the_text() -> None:
    async def scenario() -> None:
        async with (
            talking("é日🙂 one END two") as (client, _),
            client.messages.stream(**ASKED, stop_sequences=["END"]) as stream,
        ):
            text = "".join([part async for part in stream.text_stream])
            message = await stream.get_final_message()
            assert text == "é日🙂 one "
            assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_runs_to_its_end(stream: bool) -> None:
    async def ask(client: Any, messages: list[Any]) -> Any:
        body = {**ASKED, "messages": messages, "tools": [LOOK]}
        if not stream:
            return await client.messages.create(**body)
        async with client.messages.stream(**body) as streamed:
            return await streamed.get_final_message()

    async def scenario() -> None:
        answer = answering({"<tool>blue sky": "It is blue.", "hi": f"<think>hm</think>{CALL}"})
        async with talking(answer) as (client, _):
            messages = list(ASKED["messages"])
            message = await ask(client, messages)
            assert message.stop_reason == "tool_use"
            call = message.content[-1]
            assert (call.name, call.input) == ("look", {"where": "up"})
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "blue sky"}
            messages += [
                {"role": "assistant", "content": message.content},
                {"role": "user", "content": [result]},
            ]
            message = await ask(client, messages)
            assert message.content[0].text == "It is blue."
            assert message.stop_reason == "end_turn"

    run(scenario)


def test_the_tool_runner_runs_tools() -> None:
    async def scenario() -> None:
        asked = []

        @anthropic.beta_async_tool  # type: ignore[untyped-decorator]
        async def look(where: str) -> str:
            """Look somewhere.

            Args:
                where: the direction.
            """
            asked.append(where)
            return "blue sky"

        answer = answering({"<tool>blue sky": "It is blue.", "hi": CALL})
        async with talking(answer) as (client, _):
            runner = client.beta.messages.tool_runner(**ASKED, tools=[look])
            message = await runner.until_done()
            assert message.content[0].text == "It is blue."
            assert asked == ["up"]

    run(scenario)


def test_parse_gives_the_object_that_was_asked_for() -> None:
    async def scenario() -> None:
        async with talking('{"colour": "blue", "size": 3}') as (client, _):
            message = await client.messages.parse(**ASKED, output_format=Sight)
            assert message.parsed_output == Sight(colour="blue", size=3)
            again = [{"role": "assistant", "content": message.content}, *ASKED["messages"]]
            asked = {**ASKED, "messages": [*ASKED["messages"], *again]}
            assert (await client.messages.create(**asked)).stop_reason == "end_turn"

    run(scenario)


def test_count_tokens_counts_what_create_uses() -> None:
    async def scenario() -> None:
        async with talking() as (client, _):
            asked = {k: v for k, v in ASKED.items() if k != "max_tokens"} | {"system": "be kind"}
            for counter in (client.messages, client.beta.messages):
                count = await counter.count_tokens(**asked, tools=[LOOK])
                prompt = "<tools>look </tools><system>be kind<user>hi<assistant>"
                assert count.input_tokens == len(prompt)

    run(scenario)


def test_betas_and_their_query_are_tolerated() -> None:
    async def scenario() -> None:
        async with talking() as (client, _):
            message = await client.beta.messages.create(
                **ASKED,
                betas=["context-management-2025-06-27"],
                context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
                output_config={"effort": "medium"},
                thinking={"type": "adaptive"},
                extra_body={"seed": 1, "temperature": 0},
            )
            assert message.content[0].text == "hello"

    run(scenario)


def test_models_can_be_listed() -> None:
    async def scenario() -> None:
        async with talking() as (client, _):
            assert (await client.models.list()).data[0].id == MODEL
            assert (await client.models.retrieve(MODEL)).id == MODEL

    run(scenario)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, anthropic.NotFoundError),
        ({"extra_body": {"n": 2}}, anthropic.BadRequestError),
        ({"container": "abc"}, anthropic.BadRequestError),
    ],
)
def test_errors_become_the_sdks_exceptions(fields: dict[str, Any], error: type[Exception]) -> None:
    async def scenario() -> None:
        async with talking() as (client, _):
            with pytest.raises(error) as caught:
                await client.messages.create(**{**ASKED, **fields})
            found: Any = caught.value
            assert found.type in {"not_found_error", "invalid_request_error"}
            assert found.request_id == found.body["request_id"]

    run(scenario)


def test_a_failure_inside_a_stream_is_an_exception() -> None:
    async def scenario() -> None:
        async with talking(core=RefusingCore()) as (client, _):
            asked = {**ASKED, "max_tokens": 9, "extra_body": {"priority": 11}}
            with pytest.raises(anthropic.APIStatusError, match="too low") as caught:
                async with client.messages.stream(**asked) as stream:
                    await stream.get_final_message()
            assert caught.value.type == "api_error"

    run(scenario)
