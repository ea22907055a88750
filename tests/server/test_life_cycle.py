"""How a server lives and ends, as a real process: crashes, hangs, signals."""

from __future__ import annotations

import glob
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.byte_tokenizer import byte_tokenizer
from tests.faulty_cores import HANG, POISON
from tests.server_process import PYTHON, RunningServer, running_server, wait_for

WAIT_S = 60.0
Start = Callable[..., AbstractContextManager[RunningServer]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start servers of a made-up core."""
    byte_tokenizer().save_pretrained(tmp_path)

    def make(*flags: str) -> AbstractContextManager[RunningServer]:
        words = [str(tmp_path), "TouchyCore", "--served-model-name", "tiny", *flags]
        return running_server(words, tmp_path / "log", ("tests.faulty_server",))

    return make


def engine_of(server: RunningServer) -> psutil.Process:
    (engine,) = psutil.Process(server.pid).children()
    return engine


def state_of(server: RunningServer, path: str = "/ready") -> tuple[int, str]:
    answer = httpx.get(server.url + path, timeout=10)
    return answer.status_code, answer.json()["status"]


def ask(
    server: RunningServer, first: int = 10, max_tokens: int = 6, **more: object
) -> httpx.Response:
    body = {"model": "tiny", "prompt": [first, 20, 21], "max_tokens": max_tokens, **more}
    url = f"{server.api}/completions"
    return httpx.post(url, json={"ignore_eos": True, **body}, timeout=WAIT_S)


class Stream(threading.Thread):
    """A streamed answer, read on a thread of its own.

    Attributes:
        events: what was read so far.
        has_begun: set with the first event.
    """

    def __init__(self, server: RunningServer, max_tokens: int, first: int = 10) -> None:
        super().__init__(daemon=True)
        self.events: list[str] = []
        self.has_begun = threading.Event()
        self._url = f"{server.api}/completions"
        self._body = {
            "model": "tiny",
            "prompt": [first, 20, 21],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        self.start()
        assert self.has_begun.wait(WAIT_S), "the answer never began"

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=WAIT_S) as answer:
            for line in answer.iter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))
                    self.has_begun.set()

    def end(self) -> dict[str, object]:
        """Give the last event before `[DONE]`, which ends every answer once."""
        self.join(WAIT_S)
        assert not self.is_alive(), "the answer never ended"
        assert self.events.count("[DONE]") == 1
        assert self.events[-1] == "[DONE]"
        last: dict[str, object] = json.loads(self.events[-2])
        return last


def reason_of(event: dict[str, object]) -> object:
    """Give the finish reason of an answer's last event, or the code of its error."""
    if "error" in event:
        return event["error"]["code"]  # type: ignore[index]
    return event["choices"][0]["finish_reason"]  # type: ignore[index]


def exit_status(server: RunningServer) -> int:
    """Wait for a server's end; nothing of it may be left."""
    status = server.process.wait(WAIT_S)
    port = int(server.url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    return status


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give servers a folder for what is temporary, and look into it afterwards."""
    folder = tempfile.mkdtemp(prefix="od-")  # sockets have short names
    monkeypatch.setenv("TMPDIR", folder)
    yield
    assert not glob.glob(f"{folder}/*")
    os.rmdir(folder)


def test_a_crash_is_survived_without_a_new_server(start: Start) -> None:
    with start() as server:
        streams = [Stream(server, 1000) for _ in range(3)]
        engine = engine_of(server)
        engine.kill()
        assert {reason_of(stream.end()) for stream in streams} == {"engine_dead"}
        assert state_of(server) == (503, "restarting")
        assert state_of(server, "/health") == (503, "restarting")
        refused = ask(server)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "engine_restarting"
        wait_for(lambda: state_of(server) == (200, "ok"), WAIT_S, "never ready again")
        assert ask(server).status_code == 200
        assert engine_of(server).pid != engine.pid


def test_a_request_that_crashes_the_engine_is_refused_and_others_are_served(start: Start) -> None:
    with start() as server:
        for _ in range(2):
            answer = ask(server, POISON)
            assert answer.json()["error"]["code"] == "engine_dead"
            assert int(answer.headers["retry-after"]) > 0
            wait_for(lambda: state_of(server) == (200, "ok"), WAIT_S, "never ready again")
        refused = ask(server, POISON)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "request_crashed_engine"
        assert ask(server).status_code == 200
        metrics = httpx.get(f"{server.url}/metrics").text
        for name, value in (
            ("engine_restarts_total", 2.0),
            ("requests_refused_for_crashes_total", 1.0),
        ):
            assert f'outdraft:{name}{{model_name="tiny"}} {value}' in metrics
        assert 'type="RefusedRequestError"} 1.0' in metrics
        assert 'type="EngineDeadError"} 2.0' in metrics


def test_a_hung_engine_is_ended_and_started_anew(start: Start) -> None:
    with start("--watchdog-s", "2") as server:
        stream = Stream(server, 1000, HANG)
        assert reason_of(stream.end()) == "engine_dead"
        assert state_of(server, "/health") == (503, "restarting")
        wait_for(lambda: state_of(server) == (200, "ok"), WAIT_S, "never ready again")
        engine = engine_of(server)
        os.kill(engine.pid, signal.SIGSTOP)
        wait_for(lambda: state_of(server, "/health")[0] == 503, WAIT_S, "not noticed")
        wait_for(lambda: state_of(server) == (200, "ok"), WAIT_S, "never ready again")
        assert engine_of(server).pid != engine.pid


def test_an_engine_that_crashes_too_often_stays_dead(start: Start) -> None:
    with start("--engine-restarts", "0") as server:
        engine_of(server).kill()
        wait_for(lambda: state_of(server) == (503, "dead"), WAIT_S, "not dead")
        assert state_of(server, "/health") == (503, "dead")
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        assert "retry-after" not in refused.headers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end(start: Start, number: signal.Signals) -> None:
    with start() as server:
        stream = Stream(server, 150)
        server.process.send_signal(number)
        wait_for(lambda: state_of(server) == (503, "draining"), WAIT_S, "does not drain")
        assert state_of(server, "/health") == (200, "draining")
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_draining")
        assert int(refused.headers["retry-after"]) > 0
        assert reason_of(stream.end()) == "length"
        assert exit_status(server) == 0


def test_what_does_not_end_in_time_is_told_so(start: Start) -> None:
    with start("--drain-timeout", "1") as server:
        stream = Stream(server, 1000)
        server.process.terminate()
        assert reason_of(stream.end()) == "engine_draining"
        assert exit_status(server) == 0


def test_a_second_signal_ends_the_server_at_once(start: Start) -> None:
    with start("--drain-timeout", "600") as server:
        Stream(server, 1000)
        engine = engine_of(server)
        server.process.terminate()
        wait_for(lambda: state_of(server) == (503, "draining"), WAIT_S, "does not drain")
        server.process.terminate()
        assert exit_status(server) == 0
        assert not engine.is_running()


def test_a_signal_for_the_whole_group_lets_answers_end_too(start: Start) -> None:
    with start() as server:
        stream = Stream(server, 150)
        engine_of(server).terminate()
        server.process.terminate()
        assert reason_of(stream.end()) == "length"
        assert exit_status(server) == 0


def test_a_server_that_is_killed_takes_its_engine_along(start: Start) -> None:
    with start() as server:
        engine = engine_of(server)
        server.process.kill()
        server.process.wait(WAIT_S)
        gone, alive = psutil.wait_procs([engine], timeout=WAIT_S)
        assert (len(gone), len(alive)) == (1, 0)


def test_an_engine_that_was_never_ready_ends_the_server(tmp_path: Path, root: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    words = ["-m", "tests.faulty_server", str(tmp_path), "SleepyCore", "--port", "0"]
    done = subprocess.run(
        [PYTHON, *words, "--watchdog-start-s", "1"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 1
    assert "nothing moved" in done.stderr
