"""What a server says of itself."""

from __future__ import annotations

import json

from engine.errors import EngineDeadError
from engine.version import __version__
from server.config import ServerConfig
from tests.doubles import WARNINGS
from tests.server.harness import MODEL, run, saying, serving


def test_the_version_is_told() -> None:
    async def scenario() -> None:
        async with serving(is_loaded=False) as api:
            assert (await api.http.get("/version")).json() == {"version": __version__}

    run(scenario)


def test_settings_models_limits_and_versions_are_told() -> None:
    async def scenario() -> None:
        config = ServerConfig(served_model_name=("a", "b"), max_body_bytes=1000)
        async with serving(config=config) as api:
            info = (await api.http.get("/server_info")).json()
            assert info["version"] == __version__
            assert info["status"] == "ok"
            assert info["models"]["names"] == ["a", "b"]
            assert info["models"]["loaded"]["model_name"] == "fake"
            assert info["models"]["loaded"]["has_draft"] is True
            assert set(info["config"]) >= {"model", "cache", "scheduler", "speculation"}
            assert info["server"]["max_body_bytes"] == info["limits"]["max_body_bytes"] == 1000
            assert info["limits"]["max_model_len"] == 128
            assert info["limits"]["max_n"] == 128
            assert "python" in info["versions"]

    run(scenario)


def test_drafts_that_are_not_used_are_told_at_start_and_while_serving() -> None:
    async def scenario() -> None:
        async with serving(saying("a")) as api:
            info = (await api.http.get("/server_info")).json()
            assert info["warnings"] == list(WARNINGS[:1])
            assert "warnings" not in info["models"]["loaded"]
            await api.chat()
            assert (await api.http.get("/server_info")).json()["warnings"] == list(WARNINGS)

    run(scenario)


def test_a_server_that_loads_or_is_dead_describes_itself_too() -> None:
    async def scenario() -> None:
        async with serving(is_loaded=False) as api:
            info = (await api.http.get("/server_info")).json()
            assert info["status"] == "loading"
            assert info["models"] == {"names": [MODEL], "target": None, "draft": None}
            assert "max_model_len" not in info["limits"]
            assert info["warnings"] == []
        async with serving() as api:
            api.engine._die(EngineDeadError("gone"))
            assert (await api.http.get("/server_info")).json()["status"] == "dead"

    run(scenario)


def test_no_secret_is_told() -> None:
    async def scenario() -> None:
        config = ServerConfig(api_key=("sk-of-a-caller",), admin_key=("sk-of-the-admin",))
        async with serving(config=config) as api:
            headers = {"x-api-key": "sk-of-the-admin"}
            response = await api.http.get("/server_info", headers=headers)
            told = json.dumps(response.json()).lower()
            assert response.status_code == 200
            assert {"max_queue", "cors_origin"} <= set(response.json()["server"])
            assert not {"api_key", "admin_key"} & set(response.json()["server"])
            assert not any(word in told for word in ("sk-of", "password", "secret", 'token"'))

    run(scenario)
