"""`outdraft batch` in this process, over a made-up engine."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.config import EngineConfig
from server.app import create_app
from server.batches.line_run import LineRunner
from server.batches.lines import BatchLine
from server.batches.output import LineAnswer
from server.cli.batch import _plan
from server.cli.main import make_parser
from server.config import ServerConfig
from server.keys import KeyRing
from server.offline.run import Ask, Run
from server.served import make_served
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import AnswerFn, FakeCore, echo_backwards
from tests.server.harness import MODEL, USER, InlineEngine


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended.

    Attributes:
        status: its exit status.
        told: what it printed.
        asked: ids of the lines that were asked.
    """

    status: int
    told: str
    asked: tuple[str, ...]


def chat_line(custom_id: str, **body: Any) -> dict[str, Any]:
    """Make a line that asks for a chat."""
    fields = {"model": MODEL, "messages": USER, "max_tokens": 4, **body}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": fields,
    }


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    """Write lines, each JSON or a text as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batch(
    source: Path,
    output: Path,
    *words: str,
    answer: AnswerFn = echo_backwards,
    ask: Ask | None = None,
) -> Ended:
    """Run the command with these words behind its files.

    Args:
        source: its input.
        output: its output.
        words: further flags.
        answer: what the made-up engine says.
        ask: answers lines in the place of the application; None = that does.
    """
    args = make_parser().parse_args(["batch", "-i", str(source), "-o", str(output), *words])
    plan = _plan(args, ServerConfig(), MODEL, EngineConfig())
    engine, asked, printed = InlineEngine(FakeCore(answer=answer)), [], io.StringIO()

    async def load() -> Ask:
        served = make_served(engine, EngineConfig(), name=MODEL)
        served.install_tokenizer(byte_tokenizer())
        answers = ask or LineRunner(create_app(served, ServerConfig(), KeyRing())).run

        async def noting(line: BatchLine) -> LineAnswer:
            asked.append(line.custom_id)
            return await answers(line)

        return noting

    async def run() -> int:
        run = Run(plan, Console(file=printed, width=200))
        return await asyncio.wait_for(run.run(engine, load), 60)

    status = asyncio.run(run())
    return Ended(status, printed.getvalue(), tuple(asked))
