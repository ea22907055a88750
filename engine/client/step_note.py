"""Who is in the step that runs, written where a crash cannot take it along: a small file.

A message could still be on its way when the process ends; what was written to a file is there. One
process writes it, before each step of other requests than the last; another reads it afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

_NAME = "step"
_LENGTH_BYTES = 4


class StepNote:
    """The writer's side.

    Args:
        folder: where the file is made.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / _NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._request_ids: set[str] = set()

    def write(self, request_ids: set[str]) -> None:
        """Note who is in the step that begins, and in those behind it until the next call."""
        if request_ids == self._request_ids:
            return
        self._request_ids = request_ids
        written = msgspec.msgpack.encode(list(request_ids))
        os.pwrite(self._file, len(written).to_bytes(_LENGTH_BYTES) + written, 0)


def read_step_note(folder: Path) -> frozenset[str]:
    """Give the ids of who was in the last step; nobody where there was none."""
    try:
        content = (folder / _NAME).read_bytes()
    except FileNotFoundError:
        return frozenset()
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES])
    if end == _LENGTH_BYTES:
        return frozenset()
    return frozenset(msgspec.msgpack.decode(content[_LENGTH_BYTES:end], type=list[str]))
