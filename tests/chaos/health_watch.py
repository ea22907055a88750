"""Asks a server again and again whether it is well, from a process of its own, and times it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.server_process import ROOT

_PAUSE_S = 0.02
_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Health:
    """What was seen; complete when the watch is over.

    Attributes:
        seconds: that each answer took.
        num_failures: answers that did not come, or were not 200.
    """

    seconds: list[float] = field(default_factory=list)
    num_failures: int = 0


@contextmanager
def health_watch(url: str) -> Iterator[Health]:
    """Watch until the block ends."""
    health = Health()
    command = [sys.executable, "-m", "tests.chaos.health_watch", url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as process:
        yield health
        told, _ = process.communicate()
        health.seconds, health.num_failures = json.loads(told)


def _watch(url: str) -> None:
    parts = urlsplit(url)
    over = threading.Event()

    def hear() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=hear, daemon=True).start()
    seconds: list[float] = []
    num_failures = 0
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    while not over.wait(_PAUSE_S):
        began = time.perf_counter()
        try:
            connection.request("GET", "/health")
            with connection.getresponse() as answer:
                answer.read()
                num_failures += answer.status != 200
        except (OSError, http.client.HTTPException):
            num_failures += 1
            connection.close()
        seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps([seconds, num_failures]))


if __name__ == "__main__":
    _watch(sys.argv[1])
