"""Nobody gets in without a key where there are keys, on any path, and everybody else is told so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from server.auth import ADMIN_PATHS, OPEN_PATHS
from server.config import ServerConfig
from server.openapi import OPERATIONS
from server.web_files import read_web_files
from tests.server.harness import MODEL, USER, Api, error_of, run, saying, serving

KEY, OTHER, ADMIN = "sk-alice-0123456789", "sk-bob-0123456789", "sk-admin-0123456789"
GUARDED = ServerConfig(api_key=(KEY, OTHER), admin_key=(ADMIN,))
BEARER = {"authorization": f"Bearer {KEY}"}
WRONG = {"authorization": "Bearer sk-nobody-0123456789"}
UNKNOWN = (
    "/web", "/web/", "/web/../v1/models", "/web/nothing.js", "/v1", "/nothing", "/health/",
    "/health/x", "/ready/../v1/models", "//health",
)  # fmt: skip


def routes(given: Iterable[Any]) -> Iterator[APIRoute | Route]:
    """Give every route, those of routers that were included as a whole, too."""
    for route in given:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner.routes)
        else:
            assert isinstance(route, APIRoute | Route), f"{route} is of a kind that is not tested"
            yield route


def endpoints(api: Api) -> list[tuple[str, str]]:
    """Give method and path of every route of an app, those that the framework added included."""
    found = []
    for route in routes(api.app.routes):
        path = route.path.replace("{completion_id}", "x").replace("{response_id}", "x")
        path = path.replace("{file_id}", "x").replace("{batch_id}", "x")
        path = path.replace("{name:path}", "x").replace("{rest:path}", "x")
        assert "{" not in path, path
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


@pytest.mark.parametrize("headers", [{}, WRONG, {"x-api-key": "wrong"}, {"authorization": KEY}])
def test_every_route_of_the_app_needs_a_key(headers: dict[str, str]) -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            found = endpoints(api)
            assert len({path for _, path in found}) >= len({path for _, path in OPERATIONS}) + 3
            assert {path for _, path in found} >= {"/metrics", "/v1/messages", "/docs", "/version"}
            open_paths = OPEN_PATHS | set(read_web_files())
            guarded = [place for place in found if place[1] not in open_paths]
            assert len(guarded) > 25
            for method, path in guarded:
                response = await api.http.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                if path.startswith("/v1/messages") and method != "HEAD":
                    assert response.json()["type"] == "error"
                    assert response.json()["error"]["type"] == "authentication_error"
                elif method != "HEAD":
                    error = error_of(response, 401)
                    assert error["code"] == "invalid_api_key"
                    assert error["type"] == "invalid_request_error"

    run(scenario)


def test_a_route_that_is_added_later_is_guarded_too() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:

            @api.app.get("/new")
            async def new() -> str:
                return "in"

            assert (await api.http.get("/new")).status_code == 401
            assert (await api.http.get("/new", headers=BEARER)).json() == "in"

    run(scenario)


@pytest.mark.parametrize("path", UNKNOWN)
def test_paths_that_nobody_knows_are_guarded_too(path: str) -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            url = api.http.base_url.copy_with(raw_path=path.encode())
            assert (await api.http.get(url)).status_code == 401
            assert (await api.http.options(url)).status_code == 401

    run(scenario)


def test_load_balancers_need_no_key() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            for path in OPEN_PATHS:
                assert (await api.http.get(path)).json() == {"status": "ok"}

    run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"authorization": f"bearer   {KEY} "},
        {"x-api-key": KEY},
        {"authorization": "Bearer none", "x-api-key": KEY},
        {"authorization": f"Bearer {ADMIN}"},
    ],
)
def test_a_key_opens_the_api_whichever_header_has_it(headers: dict[str, str]) -> None:
    async def scenario() -> None:
        async with serving(saying("a"), config=GUARDED) as api:
            body = {"model": MODEL, "messages": USER, "max_tokens": 2}
            for path in ("/v1/chat/completions", "/v1/messages"):
                response = await api.http.post(path, json=body, headers=headers)
                assert response.status_code == 200, response.text

    run(scenario)


def test_what_operators_ask_needs_an_admins_key_where_there_is_one() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            for path in ADMIN_PATHS:
                error = error_of(await api.http.get(path, headers=BEARER), 403)
                assert error["code"] == "insufficient_permissions"
                # Statistics go on for as long as nobody names an end.
                query = {"events": 1} if path == "/statistics" else None
                admin = await api.http.get(path, params=query, headers={"x-api-key": ADMIN})
                assert admin.status_code == 200
        async with serving(config=ServerConfig(api_key=(KEY,))) as api:
            for path in ADMIN_PATHS:
                assert (await api.http.get(path)).status_code == 401
                query = {"events": 1} if path == "/statistics" else None
                response = await api.http.get(path, params=query, headers=BEARER)
                assert response.status_code == 200

    run(scenario)


def test_an_admins_key_alone_leaves_the_api_open() -> None:
    async def scenario() -> None:
        async with serving(saying("a"), config=ServerConfig(admin_key=(ADMIN,))) as api:
            assert (await api.chat()).status_code == 200
            assert (await api.http.get("/metrics")).status_code == 401
            assert (await api.http.get("/admin/drain")).status_code == 401

    run(scenario)


def test_the_body_of_who_has_no_key_is_not_read() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            statuses = []

            async def receive() -> dict[str, Any]:
                raise AssertionError("the body was read")

            async def keep(message: Any) -> None:
                statuses.append(message.get("status"))

            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v1/completions",
                "query_string": b"",
                "headers": [(b"content-type", b"application/json")],
            }
            await asyncio.wait_for(api.app(scope, receive, keep), 5)
            assert statuses[0] == 401

    run(scenario)


def test_web_sockets_are_closed() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            sent: list[Any] = []

            async def keep(message: Any) -> None:
                sent.append(message)

            scope = {"type": "websocket", "path": "/v1/chat/completions", "headers": []}
            await api.app(scope, None, keep)  # type: ignore[arg-type]
            assert sent == [{"type": "websocket.close", "code": 1008}]

    run(scenario)


def test_refusals_are_counted() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            await api.chat()
            await api.http.get("/v1/models", headers=WRONG)
            told = await api.http.get("/metrics", headers={"x-api-key": ADMIN})
            name = 'outdraft:requests_refused_total{model_name="tiny",reason="unauthorised"}'
            assert f"{name} 2.0" in told.text

    run(scenario)


def test_what_one_key_stored_another_does_not_find() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            theirs, mine = {"x-api-key": OTHER}, {"x-api-key": KEY}
            chat = {"model": MODEL, "messages": USER, "store": True, "max_tokens": 2}
            made = await api.http.post("/v1/chat/completions", json=chat, headers=mine)
            said = {"model": MODEL, "input": "hi", "max_output_tokens": 2}
            told = await api.http.post("/v1/responses", json=said, headers=mine)
            for path in (
                f"/v1/chat/completions/{made.json()['id']}",
                f"/v1/responses/{told.json()['id']}",
            ):
                assert (await api.http.get(path, headers=mine)).status_code == 200
                assert (await api.http.get(path, headers=theirs)).status_code == 404
                assert (await api.http.delete(path, headers=theirs)).status_code == 404
                assert (await api.http.get(path, headers={"x-api-key": ADMIN})).status_code == 404
            listed = await api.http.get("/v1/chat/completions", headers=theirs)
            assert listed.json()["data"] == []
            goes_on = {**said, "previous_response_id": told.json()["id"]}
            refused = await api.http.post("/v1/responses", json=goes_on, headers=theirs)
            assert error_of(refused, 404)["param"] == "previous_response_id"
            item = told.json()["output"][0]["id"]
            points = {**said, "input": [{"type": "item_reference", "id": item}]}
            refused = await api.http.post("/v1/responses", json=points, headers=theirs)
            assert refused.status_code in (400, 404)

    run(scenario)


def test_prefixes_are_cached_for_each_key_apart() -> None:
    salts: list[str] = []

    def note(request: Any, _position: int) -> int:
        salts.append(request.cache_salt)
        return 256

    async def scenario() -> None:
        async with serving(note, config=GUARDED) as api:
            body = {"model": MODEL, "messages": USER}
            for key in (KEY, OTHER, KEY):
                await api.http.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
            body["cache_salt"] = salts[0]
            await api.http.post("/v1/chat/completions", json=body, headers={"x-api-key": OTHER})

    run(scenario)
    first, second, again, forged = (salts[2 * index] for index in range(4))
    assert first == again
    # Whoever learns another's salt cannot ask for it.
    assert len({first, second, forged, ""}) == 4
