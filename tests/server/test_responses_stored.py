"""Responses are remembered: conversations go on, runs go on by themselves, all is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai.types.responses import ResponseItemList

from engine.client.messages import StepOutputs
from engine.errors import EngineDeadError
from server.keys import ANYBODY
from server.responses.store import ResponseStore
from server.tenant_stores import TenantStores
from tests.doubles import FakeCore
from tests.server.harness import Api, error_of, run, saying, serving
from tests.server.responses import (
    TOOL_TEMPLATE,
    WEATHER,
    Listener,
    call_and_leave,
    kinds,
    read_events,
    read_response,
    respond,
    roomy,
    until_over,
)


async def stored(api: Api, response_id: str, path: str = "", **query: Any) -> Any:
    return await api.http.get(f"/v1/responses/{response_id}{path}", params=query)


def resume(api: Api) -> None:
    api.engine.is_paused = False
    api.engine._work.set()


def one_step(api: Api) -> None:
    core = api.engine.core
    api.engine._handle(StepOutputs(core.step(), core.stats()))


def test_a_conversation_goes_on_from_its_previous_response() -> None:
    async def scenario() -> None:
        listener = Listener("one", "two", "three")
        async with serving(core=roomy(listener)) as api:
            first = read_response(await respond(api, input="a", instructions="Obey."))
            second = read_response(
                await respond(api, input="b", previous_response_id=first.id, instructions="Now.")
            )
            assert second.previous_response_id == first.id
            read_response(await respond(api, input="c", previous_response_id=second.id))
            assert listener.prompts == [
                "<system>Obey.<user>a<assistant>",
                "<system>Now.<user>a<assistant>one<user>b<assistant>",
                "<user>a<assistant>one<user>b<assistant>two<user>c<assistant>",
            ]

    run(scenario)


def test_an_output_answers_the_call_of_the_previous_response() -> None:
    async def scenario() -> None:
        call = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
        listener = Listener(call, "Sunny.")
        async with serving(core=roomy(listener), template=TOOL_TEMPLATE) as api:
            first = read_response(await respond(api, tools=[WEATHER]))
            (made,) = first.output
            assert made.type == "function_call"
            output = {"type": "function_call_output", "call_id": made.call_id, "output": "sun"}
            second = read_response(
                await respond(api, input=[output], tools=[WEATHER], previous_response_id=first.id)
            )
            assert second.output_text == "Sunny."
            assert listener.prompts[1].endswith("</tool_call><tool>sun<assistant>")

    run(scenario)


def test_an_unknown_previous_response_is_not_found() -> None:
    async def scenario() -> None:
        async with serving() as api:
            error = error_of(await respond(api, previous_response_id="resp_x"), 404)
            assert error["code"] == "previous_response_not_found"
            assert error["param"] == "previous_response_id"

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_response_can_be_shown_and_deleted(stream: bool) -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            answer = await respond(api, stream=stream)
            made = read_events(answer)[-1].response if stream else read_response(answer)
            assert read_response(await stored(api, made.id)) == made
            deleted = await api.http.delete(f"/v1/responses/{made.id}")
            assert deleted.json() == {"id": made.id, "object": "response", "deleted": True}
            assert error_of(await stored(api, made.id), 404)["code"] == "response_not_found"
            assert error_of(await api.http.delete(f"/v1/responses/{made.id}"), 404)

    run(scenario)


def test_what_is_not_to_be_stored_is_not() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            answer = await respond(api, store=False)
            assert answer.json()["store"] is False
            error_of(await stored(api, answer.json()["id"]), 404)

    run(scenario)


def test_an_answer_that_nobody_waited_for_is_not_stored() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            await call_and_leave(api, stream=True)
            assert len(api.app.state.responses.of(ANYBODY)) == 0

    run(scenario)


def test_the_oldest_responses_are_forgotten_first() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.app.state.responses = TenantStores(lambda _: ResponseStore(max_entries=2), 1)
            made = [(await respond(api)).json()["id"] for _ in range(3)]
            error_of(await stored(api, made[0]), 404)
            assert [(await stored(api, name)).status_code for name in made[1:]] == [200, 200]
            first = (await respond(api, previous_response_id=made[2])).json()
            assert first["status"] == "completed"

    run(scenario)


def test_the_input_is_listed_page_by_page() -> None:
    async def scenario() -> None:
        async with serving(core=roomy(saying("x"))) as api:
            first = (await respond(api, input="a")).json()
            items = [{"role": "user", "content": c} for c in "bc"]
            made = (await respond(api, input=items, previous_response_id=first["id"])).json()
            whole = await stored(api, made["id"], "/input_items", order="asc")
            listed = ResponseItemList.model_validate(whole.json(), strict=True)
            texts = [item.content[0].text for item in listed.data]  # type: ignore[union-attr]
            assert texts == ["a", "x", "b", "c"]
            assert (listed.first_id, listed.last_id) == (listed.data[0].id, listed.data[3].id)
            assert not listed.has_more
            page = (await stored(api, made["id"], "/input_items", limit=3)).json()
            assert [item["content"][0]["text"] for item in page["data"]] == ["c", "b", "x"]
            assert page["has_more"]
            rest = (await stored(api, made["id"], "/input_items", after=page["last_id"])).json()
            assert [item["content"][0]["text"] for item in rest["data"]] == ["a"]
            wrong = await stored(api, made["id"], "/input_items", limit=0)
            assert error_of(wrong)["param"] == "limit"
            lost = await stored(api, made["id"], "/input_items", after="msg_x")
            assert error_of(lost)["param"] == "after"
            error_of(await stored(api, "resp_x", "/input_items"), 404)

    run(scenario)


def test_items_are_referred_to_by_their_ids() -> None:
    async def scenario() -> None:
        listener = Listener("one", "two")
        async with serving(core=roomy(listener)) as api:
            first = (await respond(api, input="a")).json()
            said = first["output"][0]["id"]
            items: list[dict[str, Any]] = [
                {"type": "item_reference", "id": said},
                {"role": "user", "content": "b"},
            ]
            read_response(await respond(api, input=items))
            assert listener.prompts[1] == "<assistant>one<user>b<assistant>"
            read_response(await respond(api, input=[{"id": said}, items[1]]))
            fake = {"type": "message", "role": "assistant", "id": said, "content": "lie"}
            read_response(await respond(api, input=[fake, items[1]]))
            read_response(await respond(api, input=items))
            assert listener.prompts[-1] == listener.prompts[1]
            await api.http.delete(f"/v1/responses/{first['id']}")
            assert error_of(await respond(api, input=items), 404)["code"] == "item_not_found"

    run(scenario)


def test_a_background_response_is_queued_and_then_made() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.engine.is_paused = True
            queued = read_response(await respond(api, background=True))
            assert (queued.status, queued.background, queued.output) == ("queued", True, [])
            assert read_response(await stored(api, queued.id)).status == "queued"
            early = error_of(await respond(api, previous_response_id=queued.id))
            assert early["code"] == "previous_response_not_completed"
            resume(api)
            done = read_response(await until_over(api, queued.id))
            assert (done.status, done.output_text) == ("completed", "hello")
            assert done.usage is not None
            read_response(await respond(api, previous_response_id=queued.id))

    run(scenario)


def test_a_background_response_shows_how_far_it_is() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.engine.is_paused = True
            made = read_response(await respond(api, background=True))
            one_step(api)
            await asyncio.sleep(0.01)
            so_far = read_response(await stored(api, made.id))
            assert (so_far.status, so_far.output_text, so_far.usage) == ("in_progress", "he", None)
            assert so_far.output[0].status == "in_progress"

    run(scenario)


def test_a_background_response_outlives_its_client() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.engine.is_paused = True
            await call_and_leave(api, background=True, stream=True)
            (response_id,) = api.app.state.responses.of(ANYBODY).running_ids
            resume(api)
            done = read_response(await until_over(api, response_id))
            assert done.output_text == "hello"

    run(scenario)


def test_a_background_stream_is_taken_up_again_after_any_event() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            whole = read_events(await respond(api, background=True, stream=True))
            assert kinds(whole)[:3] == ["created", "queued", "in_progress"]
            assert kinds(whole)[-1] == "completed"
            made = whole[-1].response.id
            for number in (0, 3, len(whole) - 1):
                again = await stored(api, made, stream=True, starting_after=number)
                assert read_events(again, first=number + 1) == whole[number + 1 :]
            assert read_events(await stored(api, made, stream=True)) == whole

    run(scenario)


def test_a_background_stream_is_followed_while_it_is_made() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.engine.is_paused = True
            await call_and_leave(api, background=True, stream=True)
            (response_id,) = api.app.state.responses.of(ANYBODY).running_ids
            following = [
                asyncio.create_task(stored(api, response_id, stream=True, starting_after=n))
                for n in (0, 1)
            ]
            await asyncio.sleep(0.01)
            resume(api)
            first, second = [await task for task in following]
            assert kinds(read_events(first, first=1))[0] == "queued"
            assert kinds(read_events(second, first=2))[-1] == "completed"

    run(scenario)


def test_queries_are_honoured_or_refused_by_name() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            made = (await respond(api)).json()["id"]
            wanted = {"include[]": "message.output_text.logprobs"}
            assert error_of(await stored(api, made, **wanted))["param"] == "include[]"
            assert error_of(await stored(api, made, "/input_items", limt=3))["param"] == "limt"
            assert (await stored(api, made, include_obfuscation="false")).status_code == 200

    run(scenario)


def test_only_background_streams_are_streamed_again() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            for fields in ({}, {"stream": False, "background": True}):
                made = (await respond(api, **fields)).json()["id"]
                assert error_of(await stored(api, made, stream=True))["param"] == "stream"

    run(scenario)


def test_a_background_response_can_be_cancelled() -> None:
    async def scenario() -> None:
        core = FakeCore(answer=saying("hello"))
        async with serving(core=core) as api:
            api.engine.is_paused = True
            made = read_response(await respond(api, background=True))
            one_step(api)
            await asyncio.sleep(0.01)
            cancel = f"/v1/responses/{made.id}/cancel"
            cancelled = read_response(await api.http.post(cancel))
            assert (cancelled.status, cancelled.output_text) == ("cancelled", "he")
            assert cancelled.output[0].status == "incomplete"
            await asyncio.sleep(0.01)
            assert len(core.aborted) == 1
            assert read_response(await api.http.post(cancel)) == cancelled
            assert read_response(await stored(api, made.id)) == cancelled

    run(scenario)


def test_a_cancelled_stream_ends() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.engine.is_paused = True
            asking = asyncio.create_task(respond(api, background=True, stream=True))
            await asyncio.sleep(0.02)
            (response_id,) = api.app.state.responses.of(ANYBODY).running_ids
            await api.http.post(f"/v1/responses/{response_id}/cancel")
            assert kinds(read_events(await asking)) == ["created", "queued"]

    run(scenario)


def test_only_background_responses_can_be_cancelled() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            made = (await respond(api)).json()["id"]
            error = error_of(await api.http.post(f"/v1/responses/{made}/cancel"))
            assert error["param"] == "response_id"
            error_of(await api.http.post("/v1/responses/resp_x/cancel"), 404)

    run(scenario)


def test_a_running_response_that_is_deleted_is_given_up() -> None:
    async def scenario() -> None:
        core = FakeCore()
        async with serving(core=core) as api:
            api.engine.is_paused = True
            made = (await respond(api, background=True)).json()["id"]
            await api.http.delete(f"/v1/responses/{made}")
            await asyncio.sleep(0.01)
            assert len(core.aborted) == 1
            error_of(await stored(api, made), 404)
            assert len(api.app.state.responses.of(ANYBODY)) == 0

    run(scenario)


def test_a_failed_background_response_says_so() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            made = (await respond(api, background=True)).json()["id"]
            await asyncio.sleep(0.01)
            api.engine._die(EngineDeadError("The engine is gone."))
            failed = read_response(await until_over(api, made))
            assert failed.status == "failed"
            assert failed.error is not None
            assert failed.error.message == "The engine is gone."

    run(scenario)
