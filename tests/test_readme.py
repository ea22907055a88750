"""The README and ARCHITECTURE are true: their code runs, their tables follow the code."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from engine.client.supervision import SupervisionConfig
from engine.config_files import config_options
from engine.sampling_params import SamplingParams
from server.cli.main import make_parser
from server.config import ServerConfig
from server.protocol.chat import ChatCompletionRequest
from server.protocol.chat_messages import ChatMessage
from server.protocol.completions import CompletionRequest
from server.protocol.sampling import StreamOptions

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SERVER = "127.0.0.1:8000"
START_S = 300.0
pytestmark = pytest.mark.timeout(900)  # models load in several processes


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    line: int
    code: str


def blocks(text: str, language: str) -> list[Block]:
    """Give the fenced blocks of one language."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [
        Block(match[1], text[: match.start()].count("\n") + 1, match[2])
        for match in found
        if match[1] == language
    ]


PYTHON = blocks(README, "python")
SHELL = blocks(README, "bash")
# What needs the network or builds an environment is checked for its words only.
RUNNABLE = [
    b for b in SHELL if not re.search(r"^(make|git|pip|outdraft (serve|chat))\b", b.code, re.M)
]


def line_of(block: Block) -> str:
    """Name a block's test by its line."""
    return f"line {block.line}"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `outdraft` and `python` are this checkout and this interpreter."""
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in (("outdraft", "-m server.cli.main "), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_DATA_HOME": str(folder / "data"),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@pytest.fixture(scope="module")
def server(
    demo_pair: tuple[Path, Path], commands: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server of the demo pair; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = ["outdraft", "serve", "--port", address.split(":")[1]]
    with (
        log.open("wb") as sink,
        subprocess.Popen(arguments, env=commands, stdout=sink, stderr=subprocess.STDOUT) as process,
    ):
        try:
            wait_until_healthy(address, process, log)
            yield address
        finally:
            process.terminate()


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server says that it is ready."""
    deadline = time.monotonic() + START_S
    while not is_healthy(address):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def is_healthy(address: str) -> bool:
    """Whether the server says that it is ready."""
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=5) as response:
            return response.status == 200
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except (urllib.error.URLError, ConnectionError):
        return False


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a command and give what it printed."""
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("block", PYTHON, ids=line_of)
def test_python_of_the_readme_runs(
    block: Block,
    demo_pair: tuple[Path, Path],
    commands: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    code = block.code
    if SERVER in code:
        pytest.importorskip("openai")
        code = code.replace(SERVER, request.getfixturevalue("server"))
    assert run([sys.executable, "-c", code], tmp_path, commands).strip()


@pytest.mark.parametrize("block", RUNNABLE, ids=line_of)
def test_commands_of_the_readme_run(
    block: Block,
    demo_pair: tuple[Path, Path],
    commands: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    code = block.code
    if "curl" in code and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if SERVER in code:
        code = code.replace(SERVER, request.getfixturevalue("server"))
    assert run(["bash", "-euo", "pipefail", "-c", code], tmp_path, commands).strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(
    example: Path,
    demo_pair: tuple[Path, Path],
    commands: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    arguments = [sys.executable, str(example)]
    for sdk, path in (("openai", "/v1"), ("anthropic", "")):
        if f"from {sdk} import" in example.read_text():
            pytest.importorskip(sdk)
            arguments.append(f"http://{request.getfixturevalue('server')}{path}")
    assert run(arguments, tmp_path, commands).strip()


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES}
    assert 3 <= len(lengths) <= 8
    assert all(10 <= length <= 30 for length in lengths.values()), lengths


def test_make_words_of_the_readme_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for block in SHELL for word in re.findall(r"^make (\w+)", block.code, re.M)}
    assert {"serve", "test"} <= named <= targets


def test_commands_of_the_readme_are_understood() -> None:
    lines = [line for block in SHELL for line in block.code.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("outdraft ")]
    assert {words[1] for words in commands} >= {"serve", "generate"}
    for words in commands:
        assert callable(make_parser().parse_args(words[1:]).func)


def section(name: str) -> str:
    """Give what stands between the marks of a derived part of the README."""
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, flags=re.DOTALL)
    assert match is not None, f"the README has no part {name!r}"
    return match[1]


def told(default: object) -> str:
    """Write a default as the README does."""
    return "none" if default in (None, ()) else str(default).lower()


def server_table(kind: type[ServerConfig] | type[SupervisionConfig]) -> list[str]:
    """Give the table of the server's own settings."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for field in fields(kind):
        flag, meaning = field.name.replace("_", "-"), field.metadata["help"]
        rows.append(f"| `--{flag}` | {told(field.default)} | {meaning} |")
    return rows


def settings_table() -> list[str]:
    """Give the table of settings, from the fields of the configuration."""
    rows = ["| flag | in a file | default | meaning |", "|---|---|---|---|"]
    for option in config_options():
        flag = f"`--{option.flag}`" + (f" `{option.metavar}`" if option.metavar else "")
        flag = "`MODEL`" if option.name == "model" else flag.replace("|", "\\|")
        place = f"`{option.section}.{option.name}`"
        rows.append(f"| {flag} | {place} | {told(option.default)} | {option.help} |")
    return rows


def sampling_table() -> list[str]:
    """Give the table of sampling parameters, from the fields and their documentation."""
    attributes = (inspect.getdoc(SamplingParams) or "").split("Attributes:")[1]
    whole = re.sub(r"\n {8,}", " ", attributes)
    meanings = dict(re.findall(r"^    (\w+): (.+)\.$", whole, flags=re.MULTILINE))
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for field in fields(SamplingParams):
        rows.append(f"| `{field.name}` | {told(field.default)} | {meanings[field.name]} |")
    return rows


def test_settings_table_follows_the_fields() -> None:
    assert section("settings").split("\n") == ["", *settings_table(), "", ""]


def test_server_table_follows_the_fields() -> None:
    assert section("server").split("\n") == ["", *server_table(ServerConfig), "", ""]


def test_supervision_table_follows_the_fields() -> None:
    assert section("supervision").split("\n") == ["", *server_table(SupervisionConfig), "", ""]


def test_sampling_table_follows_the_fields() -> None:
    assert section("sampling").split("\n") == ["", *sampling_table(), "", ""]


def test_sampling_parameters_have_the_same_names_on_the_wire() -> None:
    wire = set(ChatCompletionRequest.model_fields) | set(CompletionRequest.model_fields)
    absent = {field.name for field in fields(SamplingParams)} - wire
    assert absent == {
        "bad_words_token_ids",
        "structured_output",
        "max_draft_tokens",
        "predicted_token_ids",
    }
    others = {"bad_words", "structured_outputs", "response_format", "speculation", "prediction"}
    assert others | {"top_logprobs", "max_completion_tokens", "priority"} <= wire


def test_fields_told_to_be_refused_are_refused() -> None:
    part = README.split("## Refused today, by name")[1].split("Fields that ask for nothing")[0]
    told_fields = set(re.findall(r"`([a-z_]+)`", part))
    assert told_fields
    models = (ChatCompletionRequest, CompletionRequest, ChatMessage, StreamOptions)
    assert told_fields <= {name for model in models for name in model.refused}


def test_architecture_begins_with_the_step_as_it_is() -> None:
    from engine.core import EngineCore

    step = textwrap.dedent(inspect.getsource(EngineCore.step)).strip()
    assert blocks(ARCHITECTURE, "python")[0].code.strip() == step


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_and_paths_of_the_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    rooms = "engine|server|kernels|tests|benchmarks|examples|model_configs"
    links |= set(re.findall(rf"`((?:{rooms})/[\w/.-]*)`", text))
    missing = {link for link in links if not (ROOT / link).exists()}
    assert not missing
