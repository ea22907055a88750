"""What boards in browsers cost the server that they watch; run by hand.

    python -m tests.browser.board_cost --rounds 4 --seconds 15 --tabs 5

Rounds without and with boards alternate, under the same load. Tokens per second include what the
browser takes from the machine; the processes' own CPU time per token does not, so that is the
answer: the engine's is what statistics cost a step, the server's what sending them costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright

from tests.server_process import RunningServer, running_server

CALLERS = 4
WARM_UP_S = 5
_PROMPT = "Tell me a story about a dog and a ball."


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts that only grow: tokens generated, and seconds of the wall and of each process."""

    tokens: float
    wall_s: float
    engine_s: float
    server_s: float

    def __sub__(self, before: Reading) -> Reading:
        return Reading(
            self.tokens - before.tokens,
            self.wall_s - before.wall_s,
            self.engine_s - before.engine_s,
            self.server_s - before.server_s,
        )

    @property
    def figures(self) -> tuple[float, float, float]:
        """Tokens per second, and milliseconds of CPU per token of the engine and the server."""
        return (
            self.tokens / self.wall_s,
            1000 * self.engine_s / self.tokens,
            1000 * self.server_s / self.tokens,
        )


class Subject:
    """The server under test and its engine's process."""

    def __init__(self, server: RunningServer) -> None:
        self.url = server.url
        self._server = psutil.Process(server.pid)
        children = self._server.children(recursive=True)
        self._engine = max(children, key=lambda child: child.memory_info().rss)

    def read(self) -> Reading:
        """Read all counts now."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        found = re.search(r"^outdraft:generation_tokens_total\S* (\S+)$", text, re.MULTILINE)
        assert found is not None
        return Reading(
            float(found[1]),
            time.monotonic(),
            _cpu_seconds(self._engine),
            _cpu_seconds(self._server),
        )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Have callers ask without pause until the block ends, in processes of their own."""
    spawn = multiprocessing.get_context("spawn")
    callers = [spawn.Process(target=_call, args=(url, n)) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        for caller in callers:
            caller.terminate()
            caller.join()


def _call(url: str, number: int) -> None:
    for seed in itertools.count(number, CALLERS):
        body = {"messages": [{"role": "user", "content": _PROMPT}], "seed": seed}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body | {"max_tokens": 200, "stream": True}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            for _ in response:
                pass


@contextmanager
def boards(browser: Any, url: str, num_tabs: int) -> Iterator[None]:
    """Keep boards open, all in sight, until the block ends."""
    with ExitStack() as stack:
        for _ in range(num_tabs):
            # A context of its own: tabs of one share six connections to a server.
            page = browser.new_context().new_page()
            stack.callback(page.context.close)
            page.goto(f"{url}/#/board")
            page.wait_for_selector(".board-status[data-state=live]", timeout=120_000)
        yield


def measure(
    subject: Subject, browser: Any, options: argparse.Namespace
) -> dict[int, list[Reading]]:
    """Measure rounds by their number of boards."""
    rounds: dict[int, list[Reading]] = {0: [], options.tabs: []}
    for _ in range(options.rounds):
        for num_tabs, readings in rounds.items():
            with boards(browser, subject.url, num_tabs):
                before = subject.read()
                time.sleep(options.seconds)
                readings.append(subject.read() - before)
    return rounds


def table(rounds: dict[int, list[Reading]]) -> str:
    """Write medians, and the least and most of the rounds."""
    lines = [
        "| boards | tokens/s | engine, CPU ms/token | server, CPU ms/token |",
        "|---|---|---|---|",
    ]
    for num_tabs, readings in rounds.items():
        columns = zip(*(reading.figures for reading in readings), strict=True)
        cells = [f"{statistics.median(c):.3f} ({min(c):.3f} - {max(c):.3f})" for c in columns]
        lines.append(f"| {num_tabs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15, help="of each round")
    parser.add_argument("--tabs", type=int, default=5, help="boards in sight")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="its program")
    options = parser.parse_args(words)
    cores = sorted(os.sched_getaffinity(0))
    # Children keep the cores that they begin with: browser and callers get others than the server.
    own, others = (cores[::2], cores[1::2]) if len(cores) > 1 else (cores, cores)
    os.sched_setaffinity(0, own)
    log = Path(tempfile.mkdtemp()) / "server.log"
    with running_server(["--threads", "1"], log) as server:
        os.sched_setaffinity(0, others)
        with sync_playwright() as playwright, load(server.url):
            browser = playwright.chromium.launch(
                executable_path=options.browser, args=["--no-sandbox"]
            )
            time.sleep(WARM_UP_S)
            report = table(measure(Subject(server), browser, options))
            browser.close()
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
