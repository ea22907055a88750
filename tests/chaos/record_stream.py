"""Very many records through `outdraft batch` between two pipes: in order, and memory stays flat."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from typing import IO

import psutil

from tests.chaos.findings import Finding
from tests.chaos.sizes import Sizes
from tests.server_process import PYTHON, ROOT

_COMMAND = (
    *(PYTHON, "-m", "server.cli.main", "batch", "-i", "-", "-o", "-", "--ordered"),
    *("--template", "{{ text }}", "--completion", "--max-tokens", "4", "--threads", "1"),
    *("--kv-cache-memory", "64MiB", "--log-level", "warning"),
)
_MAX_GROWTH_MIB = 16.0
_MIB = 2**20


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Write records as fast as they are taken, and read their answers."""
    count = sizes.stream_records
    process = subprocess.Popen(
        _COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        texts = [f"record {number} says {rng.random()}" for number in range(count)]
        writer = threading.Thread(target=_write, args=(process.stdin, texts), daemon=True)
        writer.start()
        with process.stdout:
            _read(finding, process.stdout, psutil.Process(process.pid), texts)
        status = process.wait(60)
        finding.hold(status == 0, f"exit status {status}")
    finally:
        process.kill()
        process.wait()


def _write(pipe: IO[bytes], texts: list[str]) -> None:
    with pipe:
        for number, text in enumerate(texts):
            pipe.write(json.dumps({"id": number, "text": text}).encode() + b"\n")


def _read(finding: Finding, pipe: IO[bytes], process: psutil.Process, texts: list[str]) -> None:
    """Read all answers; memory is compared from a tenth of them on, when all is warm."""
    early = {}
    number = 0
    for number, line in enumerate(pipe, start=1):
        row = json.loads(line)
        expected = {"id": number - 1, "text": texts[number - 1]}
        finding.hold(row | expected == row, "an answer is not in its place")
        finding.hold("output_error" not in row, "a record failed")
        if number == len(texts) // 10:
            early = _memory(process)
        if number == len(texts) - 1:
            _compare(finding, early, _memory(process))
    finding.numbers["records"] = number
    finding.hold(number == len(texts), f"{number} of {len(texts)} answers came")


def _memory(process: psutil.Process) -> dict[str, float]:
    """Give the resident MiB of the command and of its engine."""
    engine = max(process.children(), key=lambda child: child.memory_info().rss)
    return {
        name: part.memory_info().rss / _MIB
        for name, part in (("command", process), ("engine", engine))
    }


def _compare(finding: Finding, early: dict[str, float], late: dict[str, float]) -> None:
    for name, mib in late.items():
        growth = mib - early[name]
        finding.numbers |= {f"{name}, MiB": round(mib, 1), f"{name} grew, MiB": round(growth, 1)}
        if growth > _MAX_GROWTH_MIB:
            finding.missed.append(f"{name} grew by {growth:.1f} MiB, {_MAX_GROWTH_MIB:g} may be")
