"""The command line: flags, one-line failures, and the terminal chat."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from engine.errors import ConfigError
from server.cli.chat import Chat, ChatError, _answer
from server.cli.main import main, make_parser
from server.config import ServerConfig


def test_serve_has_a_flag_for_every_server_setting() -> None:
    args = make_parser().parse_args(
        [
            "serve",
            "m",
            "--host",
            "h",
            "--port",
            "1",
            "--served-model-name",
            "n",
            "--max-num-seqs",
            "2",
        ]
    )
    assert (args.model, args.host, args.port, args.served_model_name) == ("m", "h", 1, ["n"])
    assert args.max_num_seqs == 2
    assert callable(args.func)


_HEAVY = {"torch", "transformers", "fastapi", "numpy"}
_IMPORTS_AT_EXIT = """
import atexit, sys
atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))
"""


def imported_by(root: Path, code: str) -> set[str]:
    """Give what an interpreter has imported by the time that it ends."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS_AT_EXIT + code], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "serve --help", "generate --help", "chat --help", "bench --help"],
)
def test_help_imports_nothing_that_takes_seconds(words: str, root: Path) -> None:
    modules = imported_by(root, f"from server.cli.main import main; main({words.split()!r})")
    assert "server.cli.main" in modules
    assert not modules & _HEAVY


def test_chat_starts_without_torch(root: Path) -> None:
    code = "from server.cli.main import main; assert main(['chat', '--temperature', '3']) == 1"
    modules = imported_by(root, code)
    assert "server.cli.chat" in modules
    assert not modules & _HEAVY


def test_commands_that_are_not_used_are_not_imported(root: Path) -> None:
    modules = imported_by(root, "from server.cli.main import main; main(['chat', '--help'])")
    assert {name for name in modules if name.startswith("server.cli.")} == {
        "server.cli.chat",
        "server.cli.command_parser",
        "server.cli.failures",
        "server.cli.main",
    }


def test_the_offline_engine_imports_models_only_once_it_loads_one(root: Path) -> None:
    code = """
from engine import LLM
from engine.errors import ConfigError
try:
    LLM(no_such_option=1)
except ConfigError:
    pass
else:
    raise SystemExit(3)
"""
    modules = imported_by(root, code)
    assert "engine.llm" in modules
    assert not modules & _HEAVY


_SERVER_READS_TEXT = """
import sys
from server.cli.event_loop import do_without_torch
do_without_torch()
import server.http
from engine.tokenization import load_tokenizer
tokenizer = load_tokenizer("model_configs/demo/target")
words = [{"role": "user", "content": "hello"}]
text = tokenizer.apply_chat_template(words, tokenize=False, add_generation_prompt=True)
assert tokenizer.decode(tokenizer.encode(text)) == text
assert sys.modules.pop("torch") is None
"""


def test_the_servers_process_reads_text_without_torch(root: Path) -> None:
    modules = imported_by(root, _SERVER_READS_TEXT)
    assert {"server.http", "transformers"} <= modules
    assert not {name for name in modules if name.partition(".")[0] == "torch"}


@pytest.mark.parametrize(
    "command",
    [
        *("serve", "generate", "batch", "chat", "bench", "tune"),
        *("bench speculation", "bench serve", "bench throughput", "bench latency", "bench startup"),
        "bench growth",
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"outdraft {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "m", "--speculation", "often"], "neither 'off', 'auto' nor a number"),
        (["serve", "m", "--port", "70000"], "port: 70000 is outside"),
        (["serve", "m", "--log-level", "loud"], "log_level: 'loud'"),
        (["serve", "--config", "no-such"], "no such configuration"),
        (["chat", "--url", "http://127.0.0.1:1"], "start one with `outdraft serve`"),
        (["chat", "--model", "m", "--temperature", "3"], "temperature: 3.0 is outside"),
    ],
)
def test_failures_are_one_line_and_a_status(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_an_empty_served_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="served_model_name"):
        ServerConfig(served_model_name=("a", ""))


Handler = Callable[[httpx.Request], httpx.Response]


def chat_with(handler: Handler, **options: Any) -> Chat:
    transport = httpx.MockTransport(handler)
    http = httpx.Client(transport=transport, base_url="http://localhost")
    return Chat(http, "tiny", options, system="be kind")


def stream_of(*events: dict[str, Any]) -> httpx.Response:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return httpx.Response(200, text="".join(lines) + "data: [DONE]\n\n")


def says(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def test_chat_streams_and_remembers_the_conversation() -> None:
    bodies = []

    def server(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return stream_of(
            says("he"), says("llo"), {"choices": [], "usage": {"completion_tokens": 2}}
        )

    chat = chat_with(server, temperature=0.5)
    assert list(chat.ask("hi")) == ["he", "llo"]
    assert chat.last["usage"] == {"completion_tokens": 2}
    assert list(chat.ask("again")) == ["he", "llo"]
    assert bodies[0]["temperature"] == 0.5
    assert [message["role"] for message in bodies[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def answered(chat: Chat) -> str:
    """Give what the terminal shows of an answer."""
    console = Console(file=io.StringIO(), width=200)
    _answer(console, chat, "hi")
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_chat_says_when_an_answer_is_not_the_models_also_when_it_is_cut() -> None:
    def server(request: httpx.Request) -> httpx.Response:
        answer = stream_of(says("yes"), *failures)
        answer.headers["x-outdraft-synthetic-acceptance"] = "0.9,0.8"
        return answer

    failures: list[dict[str, Any]] = []
    mark = "(synthetic acceptance 0.9,0.8: the answer is not the model's)"
    assert answered(chat_with(server)) == f"yes\n{mark}\n"
    assert answered(chat_with(lambda _: stream_of(says("yes")))) == "yes\n"
    failures.append({"error": {"message": "gone"}})
    chat = chat_with(server)
    with pytest.raises(ChatError, match="gone"):
        answered(chat)
    assert chat.last["synthetic_acceptance"] == "0.9,0.8"


def test_chat_reset_keeps_only_the_instruction() -> None:
    chat = chat_with(lambda _: stream_of(says("yes")))
    list(chat.ask("hi"))
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "be kind"}]


def test_chat_remembers_an_answer_that_was_cut_short() -> None:
    chat = chat_with(lambda _: stream_of(says("one"), says("two")))
    answer = chat.ask("hi")
    next(answer)
    answer.close()
    assert chat.messages[-1] == {"role": "assistant", "content": "one"}


def test_chat_forgets_a_question_that_got_no_answer() -> None:
    error = {"error": {"message": "too long", "type": "", "param": None, "code": None}}
    chat = chat_with(lambda _: httpx.Response(400, json=error))
    with pytest.raises(ChatError, match="too long"):
        list(chat.ask("hi"))
    assert [message["role"] for message in chat.messages] == ["system"]


def test_chat_tells_a_failure_inside_the_stream() -> None:
    error = {"error": {"message": "the engine is gone"}}
    chat = chat_with(lambda _: stream_of(says("one"), error))
    with pytest.raises(ChatError, match="the engine is gone"):
        list(chat.ask("hi"))
