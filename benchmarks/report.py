"""Writes results with their provenance: git SHA, argv, versions, machine, time."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.version import __version__

RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, Any]:
    """Say which code ran how, on what, and when."""
    import torch

    return {
        "git_sha": _git("rev-parse", "HEAD") or "unknown",
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "argv": [Path(sys.argv[0]).name, *map(told_word, sys.argv[1:])],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {
            "outdraft": __version__,
            **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        },
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_results(name: str, results: dict[str, Any], folder: Path | None = None) -> Path:
    """Write one benchmark's results, provenance first.

    Args:
        name: of the file, without its ending.
        results: what was measured.
        folder: where to; None = `$OUT`, or `benchmarks/results/`.
    """
    folder = results_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"provenance": provenance(), **results}, indent=2) + "\n")
    return path


def results_folder(default: Path = RESULTS) -> Path:
    """Give `$OUT` where it is set, else a default."""
    return Path(os.environ.get("OUT") or default)


def rounded(value: Any) -> Any:
    """Round numbers, also in lists and by name, to what they are worth."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return value


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Give a benchmark's settings, with paths as `told_path` tells them."""
    settings = {name: value for name, value in vars(args).items() if not callable(value)}
    return {
        name: told_path(value) if isinstance(value, str | Path) else value
        for name, value in settings.items()
    }


def told_path(value: str | Path) -> str:
    """Give a path as it lies beside or inside the repository, and any other text as it is.

    Where the benchmarks are installed and there is no repository, it is the current folder.
    """
    root = _ROOT if (_ROOT / "pyproject.toml").is_file() else Path.cwd()
    return os.path.relpath(value, root) if Path(value).is_absolute() else str(value)


def told_word(word: str) -> str:
    """Give a word of a command line, its path told as others are, also behind `--flag=`."""
    flag, equals, value = word.partition("=")
    return f"{flag}={told_path(value)}" if equals and flag.startswith("-") else told_path(word)


def machine_in_words(device_type: str) -> str:
    """Say on what was measured.

    Args:
        device_type: torch's word for where the models were.
    """
    machine = provenance()["machine"]
    if device_type == "cuda":
        return str(machine["gpu"])
    threads = machine["torch_threads"]
    return f"{machine['processor']}, {threads} thread{'' if threads == 1 else 's'}"


def _git(*arguments: str) -> str:
    """Ask git of this checkout; nothing where there is none, or where this was installed."""
    command = ["git", "-C", str(_ROOT), *arguments]
    if not (_ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
