"""A server with keys as operators run it: a real process, told its keys by the environment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from server.config import ServerConfig
from tests.server.harness import run, serving
from tests.server.test_end_to_end import make_model
from tests.server_process import ROOT, RunningServer, running_server

KEY, ADMIN = "sk-from-the-environment-1", "sk-of-the-administrator-1"
# Words that are said in no other place.
SAID = ("zanzibar", "quixotic", "marzipan", "xylophone")


@dataclass(slots=True)
class Guarded:
    """A server with keys, and what it has logged."""

    server: RunningServer
    log: Path

    def post(self, path: str, body: object, key: str = KEY) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.server.url + path, json=body, headers=headers, timeout=60)

    @property
    def engine(self) -> psutil.Process:
        children = psutil.Process(self.server.pid).children()
        (engine,) = [c for c in children if any("engine_process" in w for w in c.cmdline())]
        return engine


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    model = make_model(tmp_path_factory.mktemp("target"), num_layers=1)
    words = [str(model), "--served-model-name", "tiny", "--log-level", "debug", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTDRAFT_API_KEYS", KEY)
        patch.setenv("OUTDRAFT_ADMIN_KEYS", ADMIN)
        with running_server([*words, "--max-model-len", "512"], folder / "log") as server:
            yield Guarded(server, folder / "log")


def test_the_key_of_the_environment_opens_it(guarded: Guarded) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 4}
    assert guarded.post("/v1/completions", body).status_code == 200
    assert guarded.post("/v1/completions", body, key="sk-another").status_code == 401
    assert guarded.post("/v1/completions", body, key=ADMIN).status_code == 200
    assert httpx.get(f"{guarded.server.url}/metrics").status_code == 401


def test_the_terminal_chat_takes_its_key_from_the_environment(guarded: Guarded) -> None:
    def chat(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server.cli.main", "chat", "--url", guarded.server.url]
        environment = {**os.environ, "MY_KEY": KEY}
        return subprocess.run(
            [*command, *words, "--max-tokens", "4"],
            cwd=ROOT, env=environment, input="hi\n", capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    assert chat("--api-key-env", "MY_KEY").returncode == 0
    for words, told in (((), "API key"), (("--api-key-env", "NOBODYS"), "NOBODYS is not set")):
        refused = chat(*words)
        assert refused.returncode != 0
        assert told in refused.stderr


def test_the_engine_does_not_have_the_keys(guarded: Guarded) -> None:
    environment = guarded.engine.environ()
    assert "PYTHONPATH" in environment
    assert not {"OUTDRAFT_API_KEYS", "OUTDRAFT_ADMIN_KEYS"} & set(environment)


def test_neither_words_nor_keys_are_logged_at_the_finest_level(guarded: Guarded) -> None:
    first, second, third, fourth = SAID
    messages = [{"role": "user", "content": first}]
    chat = {"model": "tiny", "messages": messages, "max_tokens": 4}
    assert guarded.post("/v1/chat/completions", chat).status_code == 200
    text = {"model": "tiny", "prompt": second, "echo": True, "stream": True, "max_tokens": 4}
    assert second in guarded.post("/v1/completions", text).text
    assert guarded.post("/v1/completions", {"prompt": third, "n": "many"}).status_code == 400
    assert guarded.post("/v1/completions", {"prompt": third}, key=fourth).status_code == 401
    assert httpx.get(f"{guarded.server.url}/version?x={fourth}").status_code == 401
    logged = guarded.log.read_text()
    assert "request_finished" in logged
    assert not [word for word in (*SAID, KEY, ADMIN) if word in logged]


def test_an_unforeseen_failure_is_logged_without_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with serving(config=ServerConfig(api_key=(KEY,))) as api:

            @api.app.post("/broken")
            async def broken() -> None:
                raise ZeroDivisionError

            headers = {"authorization": f"Bearer {KEY}"}
            with caplog.at_level(logging.DEBUG):
                response = await api.http.post("/broken", json={"a": SAID[0]}, headers=headers)
            assert response.status_code == 500
            assert "request_failed path=/broken" in caplog.text
            assert SAID[0] not in caplog.text
            assert KEY not in caplog.text

    run(scenario)
