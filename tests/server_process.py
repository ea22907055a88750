"""`outdraft serve` as a real process, started and stopped for tests that talk to it as users do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_S = 240.0
# Clients may live in an environment without torch: the server then runs in another one.
PYTHON = os.environ.get("OUTDRAFT_SERVER_PYTHON") or sys.executable


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers.

    Attributes:
        pid: of the server's process; the engine is its child.
        url: where it listens, without a path.
        process: the server's process.
    """

    pid: int
    url: str
    process: subprocess.Popen[bytes]

    @property
    def api(self) -> str:
        """What SDKs call the base URL."""
        return f"{self.url}/v1"


@contextmanager
def running_server(
    words: Sequence[str], log: Path, program: Sequence[str] = ("server.cli.main", "serve")
) -> Iterator[RunningServer]:
    """Serve on a free port until the block ends.

    Args:
        words: arguments.
        log: where it writes.
        program: a module, and what comes in front of the arguments.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Files and batches of tests are not the user's.
    environment = {**os.environ, "XDG_DATA_HOME": str(log.parent)}
    command = [PYTHON, "-m", *program, *words, "--port", str(port)]
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: is_ready(process, url, log), START_S, f"not ready, see {log}")
            yield RunningServer(process.pid, url, process)
        finally:
            process.terminate()
            process.wait(60)


def is_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    """Whether it answers that it is well; fails where the process has ended."""
    assert process.poll() is None, log.read_text()
    try:
        return status_of(f"{url}/health") == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def status_of(url: str) -> int:
    """Get an address's HTTP status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so; fails with these words."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)
