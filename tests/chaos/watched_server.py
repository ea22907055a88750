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

from server.cli.main import main


def watch(path: Path) -> None:
    """Write the names of tasks, with their coroutines, whenever the signal comes."""

    def write(_number: int, _frame: FrameType | None) -> None:
        tasks = asyncio.all_tasks()
        names = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(names))
        beside.replace(path)

    signal.signal(signal.SIGUSR2, write)


if __name__ == "__main__":
    watch(Path(sys.argv.pop(1)))
    raise SystemExit(main())
