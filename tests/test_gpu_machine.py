"""What a GPU machine runs starts there, though libraries of server and tests are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import NOT_ON_GPU_MACHINES

# Finds nothing, as where a library is not installed; transformers asks for some of them by name.
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
# The hub's client needs httpx, so it is there.
HIDDEN = NOT_ON_GPU_MACHINES - {"httpx"}


def run_hidden(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where the libraries cannot be found."""
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=set(HIDDEN)) + code],
        cwd=root,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def test_gpu_tests_are_collected_and_the_others_are_skipped_by_name(root: Path) -> None:
    words = ["--collect-only", "-q", "-rs", "-m", "gpu", "-p", "pytest_timeout"]
    done = run_hidden(root, f"import pytest; sys.exit(pytest.main({words!r}))")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/engine/test_gpu.py::" in done.stdout
    assert "tests/server/test_chat.py:0: needs fastapi, which is not installed" in done.stdout


def test_other_runs_lose_no_tests_that_way(root: Path) -> None:
    words = ["--collect-only", "-q", "-p", "pytest_timeout", "tests/server/test_chat.py"]
    done = run_hidden(root, f"import pytest; sys.exit(pytest.main({words!r}))")
    assert done.returncode != 0
    assert "No module named 'fastapi'" in done.stdout


def test_the_benchmarks_start(root: Path) -> None:
    code = "from benchmarks.gpu.__main__ import main; main(['--help'])"
    done = run_hidden(root, code)
    assert done.returncode == 0, done.stderr
    assert "kernels.attention" in done.stdout
