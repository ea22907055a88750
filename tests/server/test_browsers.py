"""What browsers are told and allowed: headers, other pages' calls, and names that lead astray."""

from __future__ import annotations

import logging

import pytest

from server.config import ServerConfig
from tests.server.harness import Api, error_of, run, serving
from tests.server.test_rate_limits import refusals

KEY = "sk-alice-0123456789"
PAGE = "https://chat.example"
ASKING = {"origin": PAGE, "access-control-request-method": "POST"}


async def get(api: Api, host: str, path: str = "/version") -> int:
    """Get a path from a server by a name."""
    return (await api.http.get(path, headers={"host": host})).status_code


@pytest.mark.parametrize("path", ["/version", "/health", "/nothing", "/v1/models/other"])
def test_every_answer_has_security_headers(path: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            headers = (await api.http.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers

    run(scenario)


def test_unforeseen_failures_have_them_too() -> None:
    async def scenario() -> None:
        async with serving() as api:

            @api.app.get("/broken")
            async def broken() -> None:
                raise ZeroDivisionError

            response = await api.http.get("/broken")
            assert response.status_code == 500
            assert response.headers["x-content-type-options"] == "nosniff"

    run(scenario)


def test_other_pages_may_not_call_unless_they_are_named() -> None:
    async def scenario() -> None:
        async with serving() as api:
            asked = await api.http.options("/v1/chat/completions", headers=ASKING)
            told = await api.http.get("/version", headers={"origin": PAGE})
            for response in (asked, told):
                assert not [name for name in response.headers if name.startswith("access-control")]

    run(scenario)


def test_named_pages_may_ask_without_a_key_and_call_with_one() -> None:
    config = ServerConfig(api_key=(KEY,), cors_origin=(PAGE,))

    async def scenario() -> None:
        async with serving(config=config) as api:
            asking = {**ASKING, "access-control-request-headers": "authorization,content-type"}
            asked = await api.http.options("/v1/chat/completions", headers=asking)
            assert asked.status_code == 200
            assert asked.headers["access-control-allow-origin"] == PAGE
            assert "authorization" in asked.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in asked.headers
            other = await api.http.options(
                "/v1/chat/completions", headers={**ASKING, "origin": "https://evil.example"}
            )
            assert other.status_code == 400
            refused = await api.http.get("/version", headers={"origin": PAGE})
            assert refused.status_code == 401
            # The page can read why.
            assert refused.headers["access-control-allow-origin"] == PAGE
            assert "retry-after" in refused.headers["access-control-expose-headers"].lower()

    run(scenario)


def test_a_server_that_is_open_to_every_page_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        with caplog.at_level(logging.WARNING, logger="server.cors"):
            async with serving(config=ServerConfig(cors_origin=("*",))):
                pass
        assert "cors_open_to_every_page" in caplog.text

    run(scenario)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000",
     "demo.localhost", "localhost."],
)  # fmt: skip
def test_a_local_server_answers_to_this_machines_names(host: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            assert await get(api, host) == 200

    run(scenario)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example",
     "[2001:db8::1]", "10.0.0.1", "localhostx"],
)  # fmt: skip
def test_a_local_server_answers_to_no_other_name(host: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            for path in ("/version", "/health", "/v1/messages"):
                assert await get(api, host, path) == 403
            response = await api.http.get("/version", headers={"host": host})
            assert error_of(response, 403)["code"] == "wrong_host"
            assert "--allowed-host" in response.json()["error"]["message"]
            assert await refusals(api, "wrong_host") == 4

    run(scenario)


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(host="0.0.0.0"),
        ServerConfig(api_key=(KEY,)),
        ServerConfig(allowed_host=("LLM.example", "other.example")),
    ],
)
def test_any_other_server_answers_to_any_name_or_those_it_is_given(config: ServerConfig) -> None:
    async def scenario() -> None:
        async with serving(config=config) as api:
            named = bool(config.allowed_host)
            assert await get(api, "llm.example:443", "/health") == 200
            assert await get(api, "evil.example", "/health") == (403 if named else 200)

    run(scenario)
