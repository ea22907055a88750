"""In which order a batch's lines are asked: those whose prompts begin alike, one behind the other.

So the blocks of a prompt that one of them computed are still in the prefix cache for the next. The
order is made of some lines at a time, which bounds what is held of a large file.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from server.batches.batch_store import BatchStore, LineRef

WINDOW_LINES = 1024
WINDOW_BYTES = 16 * 2**20


class LineQueue:
    """The lines of a batch that are to be asked.

    Args:
        store: knows them.
        batch: its row.
        path: of the input file.
        window_lines: lines that are put in order together at most.
    """

    def __init__(
        self, store: BatchStore, batch: int, path: Path, window_lines: int = WINDOW_LINES
    ) -> None:
        self._store = store
        self._batch = batch
        self._path = path
        self._window_lines = window_lines
        self._last = 0
        self._refs: deque[LineRef] = deque()

    async def take(self) -> LineRef | None:
        """Give the next line, each once; None when there are no more.

        Raises:
            StorageError: it is not known.
            OSError: the input file cannot be read.
        """
        if not self._refs:
            refs = await self._store.lines_to_do(self._batch, self._last, self._window_lines)
            refs = _fitting(refs)
            if not refs:
                return None
            self._last = refs[-1].number
            self._refs.extend(await asyncio.to_thread(in_prefix_order, self._path, refs))
        return self._refs.popleft()


def read_line(path: Path, ref: LineRef) -> bytes:
    """Read a line.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return os.pread(file.fileno(), ref.length, ref.start)


def in_prefix_order(path: Path, refs: list[LineRef]) -> list[LineRef]:
    """Put lines into an order in which neighbours have the longest beginnings in common.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        number = file.fileno()
        keys = {ref: prompt_key(os.pread(number, ref.length, ref.start)) for ref in refs}
    return sorted(refs, key=lambda ref: (keys[ref], ref.number))


def prompt_key(raw: bytes) -> str:
    """Give a text that begins as far alike for two lines as their prompts do."""
    body: dict[str, Any] = from_json(raw)["body"]
    # Templates put tools first; what is not there stands for nothing.
    parts = [
        body.get("previous_response_id"),
        body.get("tools"),
        body.get("instructions"),
        body.get("messages"),
        body.get("prompt"),
        body.get("input"),
    ]
    return json.dumps(parts, sort_keys=True)


def _fitting(refs: list[LineRef]) -> list[LineRef]:
    num_bytes = 0
    for place, ref in enumerate(refs):
        num_bytes += ref.length
        if num_bytes > WINDOW_BYTES and place:
            return refs[:place]
    return refs
