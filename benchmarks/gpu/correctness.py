"""Stage 1: runs the tests that need a GPU, in processes of their own, and reads what came of them.

An illegal address fails every later test of its process, so files in which one failed that way are
run again, each alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.part import FAILED, OK, Notes, Outcome

ROOT = Path(__file__).resolve().parents[2]
_BROKEN_DEVICE = ("CUDA error", "AcceleratorError", "device-side assert", "illegal memory access")
_TAIL_LINES = 60
# Most of the time goes into compiling kernels, which several processes can do at once; a plugin
# that times tests would warn of that.
_NUM_PROCESSES = 8
_SIDE_BY_SIDE = (
    ("-n", str(_NUM_PROCESSES), "-p", "no:benchmark") if find_spec("xdist") is not None else ()
)
_NOTHING_COLLECTED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """What became of one test.

    Attributes:
        file: it lies in, as pytest's class name says it.
        name: of the test.
        status: `passed`, `failed` or `skipped`.
        message: why, where it did not pass.
    """

    file: str
    name: str
    status: str
    message: str


def run_tests(folder: Path, deadline: float, targets: Sequence[str] = ()) -> Outcome:
    """Run the tests, and again those that were failed by others.

    Args:
        folder: where logs go.
        deadline: on the monotonic clock.
        targets: files or folders to look in; none = all.
    """
    started = time.monotonic()
    notes = Notes()
    code, cases, tail = _run(folder, "gpu_tests", deadline, targets)
    again = sorted({case.file for case in cases if _was_broken(case)})
    for number, file in enumerate(again):
        path = f"{file.replace('.', '/')}.py"
        _, own, _ = _run(folder, f"gpu_tests_again_{number}", deadline, [path])
        if own:
            cases = [case for case in cases if case.file != file] + own
    counts = Counter(case.status for case in cases)
    for status in ("passed", "failed", "skipped"):
        notes.add(f"tests {status}", counts[status])
    for case in cases:
        if case.status != "passed":
            notes.detail(case.status, test=f"{case.file}::{case.name}", why=case.message[:2000])
    if again:
        notes.details["run_again"] = again
    has_ended = code not in (None, _NOTHING_COLLECTED)
    is_right = has_ended and bool(counts["passed"]) and not counts["failed"] and bool(cases)
    error = None if is_right else f"{tail}\n{_verdict(code, counts)}"
    seconds = time.monotonic() - started
    return Outcome("tests", OK if is_right else FAILED, seconds, notes, error)


def _verdict(code: int | None, counts: Counter[str]) -> str:
    if code is None:
        return "the tests did not end in time"
    return f"pytest ended with {code}; {counts['failed']} failed, {counts['passed']} passed"


def _was_broken(case: Case) -> bool:
    return case.status == "failed" and any(word in case.message for word in _BROKEN_DEVICE)


def _run(
    folder: Path, name: str, deadline: float, targets: Sequence[str]
) -> tuple[int | None, list[Case], str]:
    """Run pytest once.

    Returns:
        Its exit code, None where it was stopped; what became of the tests; its last lines.
    """
    report, log = folder / f"{name}.xml", folder / f"{name}.log"
    report.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-ra", "--tb=short"),
        *("-p", "no:cacheprovider", f"--junitxml={report}"),
        *_SIDE_BY_SIDE,
        *targets,
    ]
    left = max(1.0, deadline - time.monotonic())
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-_TAIL_LINES:])
    return code, _cases(report), tail


def _cases(report: Path) -> list[Case]:
    """Read a JUnit report; none where pytest was stopped before it wrote it."""
    if not report.is_file():
        return []
    cases = []
    for element in ElementTree.parse(report).iter("testcase"):
        status, message = "passed", ""
        for child in element:
            if child.tag in ("failure", "error"):
                status = "failed"
                message = f"{child.get('message') or ''}\n{child.text or ''}"
            elif child.tag == "skipped":
                status, message = "skipped", child.get("message") or ""
        cases.append(
            Case(element.get("classname") or "", element.get("name") or "", status, message)
        )
    return cases
