"""What the order of a batch's lines saves: prompt tokens that the demo model need not compute."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.batch_runs import CHATS, until_ended
from tests.server_process import running_server

TOPICS = "fox king sea tree moon mill road ship bell rose snow wolf".split()
# Less than all prompts need, so that the cache must forget.
FLAGS = (
    *("--threads", "1", "--max-model-len", "512", "--kv-cache-memory", "10MiB"),
    *("--max-num-seqs", "2", "--speculation", "off"),
)


def make_lines() -> list[dict[str, Any]]:
    """Give lines of a few long beginnings, the worst mixed."""
    lines = [
        {
            "custom_id": f"{topic}-{place}",
            "method": "POST",
            "url": CHATS,
            "body": {
                "messages": [{"role": "user", "content": f"{topic} {'was there ' * 60} {place}"}],
                "max_tokens": 1,
            },
        }
        for place in range(4)
        for topic in TOPICS
    ]
    random.Random(5).shuffle(lines)
    return lines


def test_lines_that_begin_alike_share_what_was_computed(tmp_path: Path) -> None:
    lines = make_lines()
    words = [*FLAGS, "--data-dir", str(tmp_path / "data")]
    with running_server(words, tmp_path / "log") as server:
        client = OpenAI(base_url=server.api, api_key="none")
        shuffled = 0
        for line in lines:
            usage = client.chat.completions.create(model="demo", **line["body"]).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            shuffled += usage.prompt_tokens_details.cached_tokens or 0
        content = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("lines", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="1h")
        usage_of_batch = until_ended(client, batch.id).usage
    assert usage_of_batch is not None
    cached = usage_of_batch.input_tokens_details.cached_tokens
    assert cached - shuffled > usage_of_batch.input_tokens / 8
