"""A batch on a real server that is killed in the middle, again and again, and one that is not."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch

from tests.server_process import RunningServer, running_server, wait_for

CHATS = "/v1/chat/completions"
END_S = 1200.0
_WORDS = "once upon a time there was a small red fox that liked to run in the wood".split()
_FLAGS = ("--threads", "1", "--log-level", "warning", "--kv-cache-memory", "96MiB")


@dataclass(slots=True)
class BatchRun:
    """What came of a batch.

    Attributes:
        status: how it ended.
        texts: what was answered, by the ids of lines.
        times: how often each line stands in the files.
        seconds: from its creation to its end.
        done_at_kills: lines that were done whenever the server was killed.
    """

    status: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    done_at_kills: list[int] = field(default_factory=list)


def make_lines(number: int, rng: random.Random) -> bytes:
    """Write lines of a few kinds: greedy and drawn, with beginnings in common."""
    lines = []
    for place in range(number):
        beginning = " ".join(_WORDS[: 4 + place % 7])
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"{beginning} {rng.choice(_WORDS)} {place}"}],
            "max_tokens": rng.choice((4, 8, 12)),
            "seed": place,
            "temperature": rng.choice((0.0, 0.8)),
        }
        line = {"custom_id": f"line-{place}", "method": "POST", "url": CHATS, "body": body}
        lines.append(json.dumps(line).encode() + b"\n")
    return b"".join(lines)


def run_batch(
    lines: bytes,
    folder: Path,
    *,
    kill_at: Sequence[int] = (),
    rng: random.Random | None = None,
) -> BatchRun:
    """Have lines answered by the demo pair.

    Args:
        lines: of the batch.
        folder: for the server's data and logs.
        kill_at: after how many answered lines the server is killed, each time with SIGKILL.
        rng: how many moments later.
    """
    run, began = BatchRun(), time.monotonic()
    batch_id: str | None = None
    for number, kill in enumerate([*kill_at, None]):
        words = [*_FLAGS, "--data-dir", str(folder / "data")]
        with running_server(words, folder / f"log-{number}") as server:
            client = OpenAI(base_url=server.api, api_key="none", max_retries=5)
            if batch_id is None:
                batch_id = _create(client, lines).id
            if kill is None:
                _read(run, client, _ended(client, batch_id))
            else:
                _kill(run, server, client, batch_id, kill)
                time.sleep(0.2 * (rng or random.Random(0)).random())
                server.process.kill()
                server.process.wait()
    run.seconds = time.monotonic() - began
    return run


def _create(client: OpenAI, lines: bytes) -> Batch:
    file = client.files.create(file=("lines.jsonl", lines), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")


def _kill(
    run: BatchRun, server: RunningServer, client: OpenAI, batch_id: str, kill_at: int
) -> None:
    """Wait until so many lines are answered."""
    assert server.process.poll() is None, "the server ended by itself"
    wait_for(lambda: _num_done(client, batch_id) >= kill_at, END_S, "the batch does not go on")
    run.done_at_kills.append(_num_done(client, batch_id))


def _num_done(client: OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed + counts.failed


def _ended(client: OpenAI, batch_id: str) -> Batch:
    ended = {"completed", "failed", "expired", "cancelled"}
    wait_for(
        lambda: client.batches.retrieve(batch_id).status in ended, END_S, "the batch does not end"
    )
    return client.batches.retrieve(batch_id)


def _read(run: BatchRun, client: OpenAI, batch: Batch) -> None:
    run.status = batch.status
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is None:
            continue
        for written in client.files.content(file_id).text.splitlines():
            line = json.loads(written)
            run.times[line["custom_id"]] += 1
            if line["error"] is None:
                message = line["response"]["body"]["choices"][0]["message"]
                run.texts[line["custom_id"]] = message["content"]
