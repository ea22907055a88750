"""A server whose log is JSON, as operators run it: two processes, every line a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.byte_tokenizer import byte_tokenizer
from tests.faulty_cores import POISON
from tests.server_process import RunningServer, running_server, status_of, wait_for

WAIT_S = 60.0
SAID = "zanzibar"


def ask(server: RunningServer, request_id: str, **body: object) -> httpx.Response:
    whole = {"model": "tiny", "max_tokens": 4, "ignore_eos": True, **body}
    headers = {"x-request-id": request_id}
    return httpx.post(f"{server.api}/completions", json=whole, headers=headers, timeout=WAIT_S)


@pytest.mark.parametrize("core", ["BrittleCore", "TouchyCore"])
def test_every_line_of_both_processes_is_json(tmp_path: Path, core: str) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    words = [str(tmp_path), core, "--served-model-name", "tiny", "--log-format", "json"]
    log = tmp_path / "log"
    with running_server([*words, "--log-level", "debug"], log, ("tests.faulty_server",)) as server:
        assert ask(server, "mine-1", prompt=SAID).status_code == 200
        if core == "BrittleCore":
            assert ask(server, "mine-2", prompt=[10, 11], priority=1).status_code == 500
        else:
            assert ask(server, "mine-2", prompt=[POISON, 11]).status_code == 503
            wait_for(lambda: status_of(f"{server.url}/ready") == 200, WAIT_S, "not started anew")
        info = httpx.get(f"{server.url}/server_info").json()["observability"]
        assert info == {
            "log_level": "debug",
            "log_format": "json",
            "tracing": False,
            "otlp_endpoint": None,
        }
    text = log.read_text()
    assert SAID not in text
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    shape = {"time", "level", "logger", "pid", "message", "fields"}
    assert all(set(line) - {"exception"} == shape for line in lines)
    assert len({line["pid"] for line in lines}) >= 2
    assert "uvicorn.error" in {line["logger"] for line in lines}
    finished = [line for line in lines if line["message"].startswith("request_finished")]
    told = {line["fields"]["request_id"]: line["fields"] for line in finished}
    assert told["mine-1"]["completion_tokens"] == 4
    assert told["mine-1"]["finish"] == "length"
    assert told["mine-2"]["status"] in {500, 503}
    if core == "BrittleCore":
        (line,) = [line for line in lines if line["message"].startswith("request_not_taken")]
        assert line["fields"]["request_id"] == "mine-2"
        assert "KeyError" in line["exception"]
    else:
        (line,) = [line for line in lines if "engine_died_computing" in line["message"]]
        assert line["fields"]["request_ids"] == "mine-2"
