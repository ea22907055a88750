"""Writes results with their provenance: git SHA, argv, versions, machine, time."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Say which code ran how, on what, and when."""
    import torch

    return {
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Write one benchmark's results, provenance first, into `$OUT` or `benchmarks/results/`."""
    folder = Path(os.environ.get("OUT") or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"provenance": provenance(), **results}, indent=2) + "\n")
    return path


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Give a benchmark's settings, with folders as they lie beside or inside the repository."""
    root = Path(__file__).resolve().parents[1]
    settings = dict(vars(args))
    for name, value in settings.items():
        if isinstance(value, str) and Path(value).is_absolute():
            settings[name] = os.path.relpath(value, root)
    return settings


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
