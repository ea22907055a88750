"""The OpenAPI page is true: every endpoint is on it, and answers as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from engine.errors import EngineDeadError
from server.config import ServerConfig
from server.openapi import OPERATIONS
from tests.server.harness import MODEL, USER, Api, run, serving

Page = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
CHATS = "/v1/chat/completions"
PAGE: Page = {}


async def page_of(api: Api) -> Page:
    """Give the page as a reader gets it; it takes a second to make, so it is made once."""
    if not PAGE:
        PAGE.update((await api.http.get("/openapi.json")).json())
    return PAGE


def closed(part: Any) -> Any:
    """Let every object of a schema have the properties that it names, and no others."""
    if isinstance(part, list):
        return [closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {key: closed(value) for key, value in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("title") != "ResponseEvent":
        kept.setdefault("additionalProperties", False)
    return kept


def check(page: Page, schema: Any, value: Any) -> None:
    """Check a value against a schema of the page, which may refer to others."""
    whole = {**closed(schema), "components": closed(page["components"])}
    error = best_match(Draft202012Validator(whole).iter_errors(value))
    assert error is None, f"{error.json_path}: {error.message[:500]}"


def check_answer(page: Page, response: httpx.Response, template: str | None = None) -> None:
    """Check an answer against what the page says of its endpoint, status and media type."""
    request = response.request
    described = page["paths"][template or request.url.path][request.method.lower()]
    answer = described["responses"][str(response.status_code)]["content"]
    media_type = response.headers["content-type"].split(";")[0]
    assert media_type in answer, response.text
    if media_type == "application/json":
        check(page, answer[media_type]["schema"], response.json())
    elif media_type == "text/event-stream":
        data = answer[media_type]["itemSchema"]["properties"]["data"]["anyOf"][0]
        for event in streamed(response.text):
            check(page, data["contentSchema"], event)


def streamed(text: str) -> Iterator[Any]:
    """Give the data of every event of a stream."""
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if data != line and data != "[DONE]":
            yield json.loads(data)


def bodies(page: Page) -> Iterator[tuple[str, Any, Any]]:
    """Give path, schema and example of every endpoint with a body."""
    for path, methods in page["paths"].items():
        for described in methods.values():
            if "requestBody" in described:
                content = described["requestBody"]["content"]["application/json"]
                yield path, content["schema"], content["example"]


def test_every_endpoint_is_on_the_page_and_nothing_else() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            # A route that the table does not have fails the page as a whole.
            listed = {(m, path) for path, methods in page["paths"].items() for m in methods}
            assert listed == set(OPERATIONS)

    run(scenario)


def test_the_readme_lists_every_endpoint() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            rows = ["| endpoint | what it does |", "|---|---|"]
            for path, methods in page["paths"].items():
                for method, described in methods.items():
                    meaning = described["description"].split("\n")[0]
                    rows.append(f"| `{method.upper()} {path}` | {meaning} |")
            readme = (ROOT / "README.md").read_text(encoding="utf-8")
            part = readme.split("<!-- endpoints -->")[1].split("<!-- /endpoints -->")[0]
            assert part.strip().split("\n") == rows

    run(scenario)


def test_schemas_are_schemas_and_refer_to_what_is_there() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            assert page["openapi"].startswith("3.1")
            for schema in page["components"]["schemas"].values():
                Draft202012Validator.check_schema(schema)
            told = json.dumps(page)
            names = {part.split('"')[0] for part in told.split("#/components/schemas/")[1:]}
            assert names <= set(page["components"]["schemas"])
            assert "HTTPValidationError" not in told

    run(scenario)


def test_what_is_made_is_found_by_the_links_of_the_page() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            ids = {d["operationId"] for methods in page["paths"].values() for d in methods.values()}
            for path, count in ((CHATS, 4), ("/v1/responses", 4)):
                links = page["paths"][path]["post"]["responses"]["200"]["links"]
                assert len(links) == count
                assert set(links) <= ids

    run(scenario)


def test_every_body_has_an_example_that_is_answered_as_described() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            for path, schema, example in bodies(page):
                check(page, schema, example)
                if "{" in path:
                    continue
                response = await api.http.post(path, json=example)
                assert response.status_code == 200, (path, response.text)
                check_answer(page, response)

    run(scenario)


def test_streams_have_events_as_described() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            for path, schema, example in bodies(page):
                content = page["paths"][path]["post"]["responses"]["200"]["content"]
                if "text/event-stream" not in content:
                    continue
                body = {**example, "stream": True}
                check(page, schema, body)
                response = await api.http.post(path, json=body)
                assert response.headers["content-type"].startswith("text/event-stream"), path
                check_answer(page, response)

    run(scenario)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHATS, {"messages": USER, "n": 2, "logprobs": True, "top_logprobs": 2}),
        (CHATS, {"messages": USER, "speculation": {"report": True}, "store": True}),
        ("/v1/completions", {"prompt": "ab", "echo": True, "logprobs": 2, "prompt_logprobs": 1}),
        ("/v1/completions", {"prompt": ["ab", [1, 2]], "n": 2, "speculation": {"report": True}}),
        ("/v1/completions", {"prompt": "ab", "best_of": 3, "max_tokens": 0}),
        ("/v1/responses", {"input": "hi", "speculation": {"report": True}}),
        ("/tokenize", {"prompt": "ab", "return_token_strs": True}),
        ("/tokenize", {"messages": USER}),
    ],
)
def test_answers_with_more_in_them_are_as_described(path: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            check_answer(page, await api.http.post(path, json=body))

    run(scenario)


def test_stored_chats_are_as_described() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            chat = (await api.chat(store=True, max_tokens=3)).json()
            path, template = f"{CHATS}/{chat['id']}", CHATS + "/{completion_id}"
            check_answer(page, await api.http.get(CHATS))
            check_answer(page, await api.http.get(path), template)
            check_answer(page, await api.http.get(f"{path}/messages"), template + "/messages")
            check_answer(page, await api.http.post(path, json={"metadata": {}}), template)
            check_answer(page, await api.http.delete(path), template)
            check_answer(page, await api.http.delete(path), template)

    run(scenario)


def test_stored_responses_are_as_described() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            body = {"input": "hi", "max_output_tokens": 16}
            told = (await api.http.post("/v1/responses", json=body)).json()
            path, template = f"/v1/responses/{told['id']}", "/v1/responses/{response_id}"
            check_answer(page, await api.http.get(path), template)
            check_answer(page, await api.http.get(f"{path}/input_items"), template + "/input_items")
            check_answer(page, await api.http.post(f"{path}/cancel"), template + "/cancel")
            check_answer(page, await api.http.delete(path), template)
            check_answer(page, await api.http.get(path), template)

    run(scenario)


@pytest.mark.parametrize("is_loaded", [True, False])
def test_what_operators_ask_is_answered_as_described(is_loaded: bool) -> None:
    async def scenario() -> None:
        async with serving(is_loaded=is_loaded) as api:
            page = await page_of(api)
            for path, methods in page["paths"].items():
                if "get" in methods and "{" not in path:
                    # Statistics go on for as long as nobody names an end.
                    query = {"events": 1} if path == "/statistics" else None
                    check_answer(page, await api.http.get(path, params=query))
            for name in (MODEL, "other"):
                response = await api.http.get(f"/v1/models/{name}")
                check_answer(page, response, "/v1/models/{name}")

    run(scenario)


def test_failures_are_as_described() -> None:
    async def scenario() -> None:
        async with serving(config=ServerConfig(max_body_bytes=1000)) as api:
            page = await page_of(api)
            for path, _schema, example in bodies(page):
                if "{" in path:
                    continue
                seen = set()
                for content, headers in (
                    (b"{", {"content-type": "application/json"}),
                    (b'{"zzz": 1}', {"content-type": "application/json"}),
                    (b"x" * 1001, {"content-type": "application/json"}),
                    (b"{}", {"content-type": "text/plain"}),
                    (
                        json.dumps({**example, "model": "other"}).encode(),
                        {"content-type": "application/json"},
                    ),
                ):
                    response = await api.http.post(path, content=content, headers=headers)
                    check_answer(page, response)
                    seen.add(response.status_code)
                assert seen == {400, 404, 413, 415}, path
            api.engine._die(EngineDeadError("gone"))
            for path, _schema, example in bodies(page):
                if "{" not in path:
                    response = await api.http.post(path, json=example)
                    counts_only = path.endswith("_tokens")
                    assert response.status_code == 503 or counts_only, path
                    check_answer(page, response)

    run(scenario)


def test_fields_that_are_not_served_are_listed_with_what_is_taken() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            schemas = page["components"]["schemas"]
            for path, name, example in (
                ("/v1/completions", "CompletionRequest", {"prompt": "a"}),
                (CHATS, "ChatCompletionRequest", {"messages": USER}),
            ):
                neutral = {
                    field: schema["enum"]
                    for field, schema in schemas[name]["properties"].items()
                    if schema.get("description") == "Not served."
                }
                assert neutral
                for field, values in neutral.items():
                    for value in values:
                        body = {**example, field: value, "max_tokens": 1}
                        check(page, schemas[name], body)
                        assert (await api.http.post(path, json=body)).status_code == 200, body

    run(scenario)


KEYS = ServerConfig(api_key=("sk-of-a-caller-1",), admin_key=("sk-of-the-admin-1",))


def test_calls_without_the_right_key_are_refused_as_described() -> None:
    async def scenario() -> None:
        async with serving() as open_api:
            page = await page_of(open_api)
        assert set(page["components"]["securitySchemes"]) == {"bearer", "key"}
        async with serving(config=KEYS) as api:
            for (method, path), operation in OPERATIONS.items():
                template = path
                for name in ("completion_id", "response_id", "name"):
                    path = path.replace(f"{{{name}}}", "x")
                response = await api.http.request(method, path)
                described = page["paths"][template][method]
                assert bool(described["security"]) == operation.needs_key
                assert (response.status_code == 401) == operation.needs_key, path
                check_answer(page, response, template)
            headers = {"x-api-key": "sk-of-a-caller-1"}
            for path in ("/metrics", "/server_info"):
                response = await api.http.get(path, headers=headers)
                assert response.status_code == 403
                check_answer(page, response)

    run(scenario)


def test_calls_that_find_no_room_are_refused_as_described() -> None:
    async def scenario() -> None:
        async with serving() as open_api:
            page = await page_of(open_api)
        async with serving(config=ServerConfig(max_requests_per_minute=1)) as api:
            await api.http.get("/version")
            for path, _schema, example in bodies(page):
                response = await api.http.post(path.replace("{completion_id}", "x"), json=example)
                assert response.status_code == 429
                check_answer(page, response, path)

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_take_too_long_fail_as_described(stream: bool) -> None:
    async def scenario() -> None:
        async with serving(config=ServerConfig(request_timeout=0.02)) as api:
            page = await page_of(api)
            api.engine.is_paused = True
            for path, methods in page["paths"].items():
                if "504" not in methods.get("post", {"responses": {}})["responses"]:
                    continue
                example = methods["post"]["requestBody"]["content"]["application/json"]["example"]
                response = await api.http.post(path, json={**example, "stream": stream})
                assert response.status_code == (200 if stream else 504), path
                check_answer(page, response)

    run(scenario)
