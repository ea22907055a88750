"""Schemathesis against a server of the demo pair; `pip install .[fuzz]`, then `pytest -m slow`."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_process import running_server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
)
MIN_CASES = 2000
# Answers without a limit fill the context, so it is short.
SERVER = ("--max-model-len", "96", "--threads", "1", "--log-level", "warning")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)
def test_no_request_breaks_the_server_or_its_description(tmp_path: Path) -> None:
    with running_server(SERVER, tmp_path / "log") as server:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            # Its answers have no end, but for those who name one.
            *("--exclude-path", "/statistics"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "30", "--continue-on-failure", "--no-color"),
            *("--suppress-health-check", "all", "--request-timeout", "60"),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) >= MIN_CASES
