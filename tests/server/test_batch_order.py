"""Which line is asked next: prompts that begin alike together, and owners in turn."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from server.batches.batch_store import LineRef
from server.batches.prefix_order import in_prefix_order, prompt_key
from server.batches.turns import Turns
from tests.server.batch_server import chat_line


def written(lines: list[dict[str, Any]], path: Path) -> list[LineRef]:
    refs, start, parts = [], 0, []
    for number, line in enumerate(lines, start=1):
        raw = json.dumps(line).encode() + b"\n"
        refs.append(LineRef(number, line["custom_id"], start, len(raw) - 1))
        start += len(raw)
        parts.append(raw)
    path.write_bytes(b"".join(parts))
    return refs


def test_prompts_that_begin_alike_are_neighbours(tmp_path: Path) -> None:
    lines = [
        chat_line(f"{topic}-{place}", f"{topic} {'long ' * 50} {place}")
        for place in range(5)
        for topic in ("fox", "wood", "king")
    ]
    refs = written(lines, tmp_path / "in")
    random.Random(0).shuffle(refs)
    topics = [str(ref.custom_id).split("-")[0] for ref in in_prefix_order(tmp_path / "in", refs)]
    assert topics == ["fox"] * 5 + ["king"] * 5 + ["wood"] * 5


def test_lines_that_ask_the_same_keep_the_order_of_the_file(tmp_path: Path) -> None:
    refs = written([chat_line(str(place)) for place in range(9)], tmp_path / "in")
    assert in_prefix_order(tmp_path / "in", refs[::-1]) == refs


def test_the_key_of_a_prompt_does_not_depend_on_how_it_is_spelled() -> None:
    first = {"body": {"messages": [{"role": "user", "content": "a"}], "seed": 1}}
    second = {"body": {"temperature": 0, "messages": [{"content": "a", "role": "user"}]}}
    assert prompt_key(json.dumps(first).encode()) == prompt_key(json.dumps(second).encode())


def test_owners_and_their_batches_take_turns() -> None:
    async def scenario() -> None:
        turns = Turns(4)
        given: list[tuple[str, int]] = []

        async def ask(owner: str, batch: int) -> None:
            await turns.take(owner, batch)
            given.append((owner, batch))

        for _ in range(4):
            await ask("a", 1)
        waiting = [
            asyncio.create_task(ask(*who))
            for who in [("a", 1)] * 4 + [("a", 2)] * 2 + [("b", 3)] * 2
        ]
        await asyncio.sleep(0)
        for _ in range(4):
            turns.give_back("a", 1)
            await asyncio.sleep(0)
        assert given[4:] == [("b", 3), ("b", 3), ("a", 2), ("a", 1)]
        assert turns.num_taken == 4
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_who_leaves_the_queue_takes_no_place() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        await turns.take("a", 1)
        leaving = [asyncio.create_task(turns.take("b", number)) for number in range(3)]
        await asyncio.sleep(0)
        leaving[0].cancel()
        # The second is given the place and cancelled before it can use it.
        turns.give_back("a", 1)
        leaving[1].cancel()
        await asyncio.gather(*leaving[:2], return_exceptions=True)
        await leaving[2]
        assert turns.num_taken == 1
        turns.give_back("b", 2)
        await turns.take("c", 4)

    asyncio.run(scenario())
