"""What cannot be honoured is refused by name, in OpenAI's shape, before any stream opens."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from engine.request import NO_TOKEN_POSSIBLE, FinishReason, RequestDelta
from tests.doubles import EOS, FakeCore
from tests.server.harness import USER, Api, error_of, run, saying, serving


async def post(api: Api, path: str, **body: Any) -> httpx.Response:
    """Post what httpx itself would not write: Python's JSON has NaN."""
    headers = {"content-type": "application/json"}
    return await api.http.post(path, content=json.dumps(body).encode(), headers=headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{}]},
        {"function_call": {"name": "f"}},
        {"reasoning_effort": "high"},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy"}},
        {"verbosity": "low"},
        {"web_search_options": {}},
        {"prompt_cache_retention": "24h"},
        {"chat_template": "{{ 1 }}"},
    ],
)
def test_chat_fields_that_are_not_served_are_refused(field: dict[str, Any], stream: bool) -> None:
    async def scenario() -> None:
        async with serving() as api:
            error = error_of(await api.chat(stream=stream, **field))
            assert error["type"] == "invalid_request_error"
            assert error["param"] == next(iter(field))
            assert error["code"] == "unsupported_parameter"

    run(scenario)


@pytest.mark.parametrize("field", [{"suffix": "x"}, {"truncate_prompt_tokens": 5}])
def test_completion_fields_that_are_not_served_are_refused(field: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving() as api:
            assert error_of(await api.complete(**field))["param"] == next(iter(field))

    run(scenario)


def test_values_that_ask_for_nothing_are_accepted() -> None:
    async def scenario() -> None:
        async with serving(saying("a")) as api:
            neutral = {
                "tools": None,
                "tool_choice": "none",
                "parallel_tool_calls": True,
                "response_format": {"type": "text"},
                "service_tier": "auto",
                "store": False,
                "stop": None,
                "logit_bias": {},
                "temperature": None,
                "stream_options": None,
                "user": "me",
                "metadata": {"a": "b"},
            }
            assert (await api.chat(**neutral)).status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("n", 129, 128),
        ("stop", ["x"] * 17, 16),
        ("stop", "x" * 1001, 1000),
        ("stop_token_ids", [1] * 129, 128),
        ("logit_bias", {str(i): 1 for i in range(1025)}, 1024),
        ("allowed_token_ids", [1] * 16_385, 16_384),
        ("bad_words", ["x"] * 257, 256),
        ("bad_words", ["x" * 1001], 1000),
        ("logprobs", 21, 20),
        ("best_of", 21, 20),
        ("speculation", {"max_draft_tokens": 33}, 32),
    ],
)
def test_limits_are_told_with_their_number(field: str, value: Any, limit: int) -> None:
    async def scenario() -> None:
        async with serving() as api:
            error = error_of(await api.complete(**{field: value}))
            assert error["param"] == field
            assert str(limit) in error["message"]
            assert "constrained" not in error["message"]

    run(scenario)


@pytest.mark.parametrize("field", [{"echo": 0}, {"functions": 0}, {"best_of": True}])
def test_values_that_only_resemble_nothing_are_refused(field: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving() as api:
            assert error_of(await api.chat(**field))["param"] == next(iter(field))

    run(scenario)


def test_unknown_fields_are_refused_with_the_nearest_name() -> None:
    async def scenario() -> None:
        async with serving() as api:
            error = error_of(await api.chat(temprature=1))
            assert error["param"] == "temprature"
            assert error["code"] == "unknown_parameter"
            assert "'temperature'" in error["message"]
            nested = error_of(await api.chat(messages=[{"role": "user", "contents": "x"}]))
            assert "'content'" in nested["message"]

    run(scenario)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.5),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2),
        ("n", 0),
        ("n", 129),
        ("n", "2"),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-200),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", 3),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"99999": 1}),
        ("stop_token_ids", [99999]),
        ("allowed_token_ids", []),
        ("bad_words", [" "]),
        ("ignore_eos", "yes"),
        ("priority", "high"),
        ("priority", 2**40),
        ("temperature", float("nan")),
    ],
)
def test_values_outside_their_limits_are_refused(field: str, value: Any) -> None:
    async def scenario() -> None:
        async with serving() as api:
            for response in (
                await post(api, "/v1/chat/completions", messages=USER, **{field: value}),
                await post(api, "/v1/completions", prompt="a", stream=True, **{field: value}),
            ):
                error = error_of(response)
                assert error["param"] == field
                assert field in error["message"]

    run(scenario)


def test_usage_in_a_stream_is_not_for_whole_answers() -> None:
    async def scenario() -> None:
        async with serving() as api:
            refused = await api.chat(stream_options={"include_usage": True})
            assert error_of(refused)["param"] == "stream_options"
            assert (await api.chat(stream_options={})).status_code == 200

    run(scenario)


def test_requests_cannot_bring_their_own_template() -> None:
    async def scenario() -> None:
        async with serving() as api:
            refused = await api.chat(chat_template_kwargs={"chat_template": "{{ 1 }}"})
            assert "chat_template_kwargs.chat_template" in error_of(refused)["message"]

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_says_maximum_context_length(stream: bool) -> None:
    async def scenario() -> None:
        async with serving() as api:
            for response in (
                await api.chat(messages=[{"role": "user", "content": "x" * 500}], stream=stream),
                await api.chat(max_tokens=1000, stream=stream),
                await api.complete(prompt="x" * 500, stream=stream),
            ):
                error = error_of(response)
                assert error["code"] == "context_length_exceeded"
                assert "maximum context length is 128 tokens" in error["message"]

    run(scenario)


def test_what_is_far_too_long_as_a_whole_is_not_made_into_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}] * 100

    def encode(_text: str, **_options: object) -> list[int]:
        raise AssertionError("this takes seconds and hundreds of MiB where there is much of it")

    async def scenario() -> None:
        async with serving() as api:
            monkeypatch.setattr(api.served.tokenizer, "encode", encode)
            for path, body in (
                ("/v1/chat/completions", {"messages": many}),
                ("/v1/messages", {"messages": many, "max_tokens": 4}),
                ("/v1/responses", {"input": many, "max_output_tokens": 16}),
                ("/tokenize", {"messages": many}),
            ):
                response = await api.post(path, **body)
                assert response.status_code == 400
                assert "maximum context length is 128 tokens" in response.text

    run(scenario)


def test_unknown_models_are_not_found() -> None:
    async def scenario() -> None:
        async with serving() as api:
            response = await api.http.post(
                "/v1/chat/completions", json={"model": "gpt-9", "messages": USER, "stream": True}
            )
            error = error_of(response, 404)
            assert error["code"] == "model_not_found"
            assert error["param"] == "model"

    run(scenario)


def test_no_model_means_the_one_that_is_served() -> None:
    async def scenario() -> None:
        async with serving(saying("a")) as api:
            response = await api.http.post("/v1/chat/completions", json={"messages": USER})
            assert response.status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("body", "param"),
    [(b"{broken", None), (b"[]", None), (b"{}", "messages"), (b'{"messages": []}', "messages")],
)
def test_broken_bodies_are_bad_requests(body: bytes, param: str | None) -> None:
    async def scenario() -> None:
        async with serving() as api:
            response = await api.http.post(
                "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            )
            assert error_of(response)["param"] == param

    run(scenario)


def test_unknown_paths_and_methods_have_openais_shape() -> None:
    async def scenario() -> None:
        async with serving() as api:
            error_of(await api.http.get("/v1/nothing"), 404)
            error_of(await api.http.get("/v1/completions"), 405)

    run(scenario)


def test_unforeseen_failures_show_nothing_of_the_inside() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.served.fingerprint = None  # type: ignore[assignment]
            api.engine.submit = None  # type: ignore[method-assign, assignment]
            response = await api.chat()
            error = error_of(response, 500)
            assert error["type"] == "server_error"
            assert "NoneType" not in error["message"]
            assert response.headers["x-request-id"]

    run(scenario)


def test_sampling_fields_reach_the_engine() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            seen = []
            api.engine.core.add_request = seen.append  # type: ignore[method-assign]
            fields: dict[str, Any] = {
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": -1,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "presence_penalty": 0.2,
                "frequency_penalty": 0.3,
                "logit_bias": {"5": 1.5},
                "allowed_token_ids": [1, 2],
                "bad_words": ["ab"],
                "seed": -1,
                "max_tokens": 9,
                "min_tokens": 2,
                "stop": "x",
                "stop_token_ids": [3],
                "ignore_eos": True,
                "skip_special_tokens": False,
                "include_stop_str_in_output": True,
                "priority": 4,
            }
            from server.completion_answer import start_completion
            from server.protocol.completions import CompletionRequest

            body = CompletionRequest.model_validate({"prompt": "abc", **fields})
            start_completion(api.served, body).generation.close()
            (request,) = seen
            params = request.params
            assert params.temperature == 0.5
            assert (params.top_p, params.top_k, params.min_p) == (0.9, 0, 0.1)
            assert params.repetition_penalty == 1.1
            assert (params.presence_penalty, params.frequency_penalty) == (0.2, 0.3)
            assert params.logit_bias == {5: 1.5}
            assert params.allowed_token_ids == (1, 2)
            assert [len(word) for word in params.bad_words_token_ids] == [2, 3]
            assert params.seed == 2**64 - 1
            assert (params.max_tokens, params.min_tokens) == (9, 2)
            assert (params.stop, params.stop_token_ids) == (("x",), (3,))
            assert params.ignore_eos
            assert params.include_stop_str_in_output
            assert not params.skip_special_tokens
            assert request.priority == 4

    run(scenario)


def test_end_of_sequence_can_be_ignored() -> None:
    async def scenario() -> None:
        async with serving(lambda _request, _position: EOS) as api:
            body = (await api.complete(ignore_eos=True, skip_special_tokens=False)).json()
            assert body["choices"][0]["text"] == "</s>" * 16

    run(scenario)


class ImpossibleCore(FakeCore):
    """A core that finds no token possible for any request."""

    def step(self) -> list[RequestDelta]:
        refused, self._requests = self._requests, {}
        return [
            RequestDelta(request_id, [], finish_reason=FinishReason.ERROR, error=NO_TOKEN_POSSIBLE)
            for request_id in refused
        ]


def test_settings_that_leave_no_token_possible_are_the_callers_fault() -> None:
    async def scenario() -> None:
        async with serving(core=ImpossibleCore()) as api:
            assert error_of(await api.complete())["code"] == "no_token_possible"
            told = (await api.complete(stream=True)).text
            assert '"code":"no_token_possible"' in told
            assert told.endswith("data: [DONE]\n\n")

    run(scenario)
