"""A real server, killed in the middle of a batch; and its command line, where a folder is wrong."""

from __future__ import annotations

import random
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.batch_runs import make_lines, run_batch
from tests.conftest import ROOT
from tests.server_process import running_server

NUM_LINES = 40


def test_killed_servers_lose_no_line_and_repeat_none(tmp_path: Path) -> None:
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    lines = make_lines(NUM_LINES, random.Random(3))
    calm = run_batch(lines, tmp_path / "calm")
    killed = run_batch(lines, tmp_path / "killed", kill_at=(1,), rng=random.Random(3))
    assert (calm.status, killed.status) == ("completed", "completed")
    assert set(killed.times.values()) == {1}
    assert len(killed.times) == NUM_LINES
    assert killed.texts == calm.texts


def serve(*words: str) -> subprocess.CompletedProcess[str]:
    """Start a server that should not start."""
    return subprocess.run(
        [sys.executable, "-m", "server.cli.main", "serve", "--port", "0", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_folder_that_cannot_be_used_ends_a_start_that_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = serve("--data-dir", str(tmp_path / "file" / "data"))
    assert ended.returncode != 0
    assert "data_dir" in ended.stderr
    assert "cannot be used" in ended.stderr


def test_a_second_server_is_refused_and_told_who_has_the_folder(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_server(["--data-dir", str(tmp_path / "outdraft")], log) as server:
        ended = serve("--data-dir", str(tmp_path / "outdraft"))
        assert ended.returncode != 0
        assert f"in use by another server (process {server.pid})" in ended.stderr
        with urllib.request.urlopen(f"{server.url}/v1/files") as answer:
            assert answer.status == 200
