"""`outdraft serve` with one signal more: at SIGUSR2 it writes down which asyncio tasks live.

`python -m tests.chaos.watched_server FILE serve ...`; everything else is what users run.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from server.cli.main import main


def watch(path: Path) -> None:
    """Write the names of tasks, with their coroutines, whenever the signal comes."""

    def write(_number: int, _frame: FrameType | None) -> None:
        names = Counter(map(_name, asyncio.all_tasks()))
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(names))
        beside.replace(path)

    signal.signal(signal.SIGUSR2, write)


def _name(task: asyncio.Task[Any]) -> str:
    """Name the coroutine of a task, and the innermost one that it waits in."""
    names: list[str] = []
    inner: Any = task.get_coro()
    while hasattr(inner, "cr_await"):
        names.append(inner.__qualname__)
        inner = inner.cr_await
    return " ... ".join(dict.fromkeys([names[0], names[-1]])) if names else "?"


if __name__ == "__main__":
    watch(Path(sys.argv.pop(1)))
    raise SystemExit(main())
