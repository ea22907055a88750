"""Runs a benchmark's program and reads what it wrote."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from engine.errors import ConfigError


def run_benchmark(module: ModuleType, words: list[str], folder: Path) -> dict[str, Any]:
    """Run it as its command line would, and give its results."""
    args = _parse(module.add_flags, [*words, "--output", str(folder), "--name", "result"])
    assert module.run(args) == 0
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert content["provenance"]["versions"]["outdraft"]
    assert "settings" in content
    return content


def refused(module: ModuleType, words: list[str]) -> str:
    """Give what it says of a command line that it cannot honour."""
    with pytest.raises(ConfigError) as caught:
        module.run(_parse(module.add_flags, words))
    return str(caught.value)


def comes_to(pid: int, status: str) -> bool:
    """Wait a little until a process has a status; one that is gone counts as a zombie."""
    for _ in range(200):
        try:
            now = psutil.Process(pid).status()
        except psutil.NoSuchProcess:
            now = psutil.STATUS_ZOMBIE
        if now == status:
            return True
        time.sleep(0.05)
    return False


def _parse(
    add_flags: Callable[[argparse.ArgumentParser], None], words: list[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)
