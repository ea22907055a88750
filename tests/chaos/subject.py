"""The server under test: a real `outdraft serve` with its engine, and what it holds.

It counts what a server must give back (tasks, files, threads, memory, blocks, places in the queue)
and says what it kept; it refuses to know what was done to it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.serving.http_stream import HttpClient, Target, parse_target
from tests.chaos.asks import Known, learn, make_asks
from tests.chaos.findings import Finding
from tests.chaos.sizes import Sizes
from tests.server_process import RunningServer, running_server, wait_for

ENGINE_MODULE = "engine.client.engine_process"
REPLY_S = 120.0
_SETTLE_S = 20.0
_PAUSE_S = 0.1
# Pools start their threads as they are needed, and keep them.
_POOLED_THREADS = 8
# All of it is written to within moments, after which memory that grows is not the cache.
_CACHE = "96MiB"
_MEMORY_SHARE = 0.05
_MEMORY_BYTES = 4 * 2**20
NO_CACHES: Mapping[str, int] = {}
_GAUGES = re.compile(
    r"^outdraft:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)\{.*\} (\S+)$",
    re.MULTILINE,
)
_GENERATED = re.compile(r"^outdraft:generation_tokens_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the two processes hold.

    Attributes:
        tasks: of asyncio, in the server.
        files: file descriptors, by process.
        threads: by process.
        memory: resident bytes, by process.
    """

    tasks: dict[str, int]
    files: dict[str, int]
    threads: dict[str, int]
    memory: dict[str, int]


@dataclass(slots=True)
class Subject:
    """A server that answers, and a client of it.

    Attributes:
        server: the process.
        client: keeps its connections.
        log: where the server writes.
        sizes: how much of everything.
        rng: everything random comes from it.
        known: requests whose answers are known.
    """

    server: RunningServer
    client: HttpClient
    log: Path
    sizes: Sizes
    rng: random.Random
    known: list[Known]

    async def learn(self) -> None:
        """Ask the seeded requests while nothing else is asked."""
        self.known = await learn(self.client, make_asks(self.rng, self.sizes.asks))

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.server.url

    def processes(self) -> dict[str, psutil.Process]:
        """Give the server's process and its engine's."""
        top = psutil.Process(self.server.pid)
        for child in top.children():
            if ENGINE_MODULE in child.cmdline():
                return {"server": top, "engine": child}
        raise AssertionError("the server has no engine process")

    def root_client(self, timeout_s: float = REPLY_S) -> HttpClient:
        """Make a client for paths outside of `/v1`."""
        parts = parse_target(self.url, {})
        return HttpClient(Target(parts.host, parts.port, False, "", {}), time.monotonic, timeout_s)

    def gauges(self) -> dict[str, float]:
        """Read what the engine says that it holds."""
        found = _GAUGES.findall(self._metrics())
        assert len(found) == 3, f"/metrics lacks gauges: {found}"
        return {name: float(value) for name, value in found}

    def num_generated_tokens(self) -> int:
        """Read how many tokens the engine has generated."""
        found = _GENERATED.search(self._metrics())
        assert found is not None, "/metrics lacks generated tokens"
        return int(float(found[1]))

    def holdings(self) -> Holdings:
        """Count what both processes hold."""
        processes = self.processes()
        return Holdings(
            tasks=self._tasks(),
            files={name: process.num_fds() for name, process in processes.items()},
            threads={name: process.num_threads() for name, process in processes.items()},
            memory={name: process.memory_info().rss for name, process in processes.items()},
        )

    def settled(self) -> Holdings:
        """Hang up, wait until the server is quiet, and count what it holds.

        Raises:
            AssertionError: it does not become quiet.
        """
        self.client.close()
        gc.collect()
        wait_for(lambda: not any(self.gauges().values()), _SETTLE_S, "the gauges do not go back")
        last, end = self.holdings(), time.monotonic() + _SETTLE_S
        while time.monotonic() < end:
            time.sleep(0.3)
            now = self.holdings()
            if (now.tasks, now.files) == (last.tasks, last.files):
                return now
            last = now
        return last

    def check(
        self,
        before: Holdings,
        finding: Finding,
        *,
        same_engine: bool = True,
        caches: Mapping[str, int] = NO_CACHES,
    ) -> None:
        """Hold the server to what it held before; what goes back takes a moment.

        Args:
            before: see above.
            finding: hears of what does not go back.
            same_engine: whether the engine is still the process that it was.
            caches: bytes that each process may keep on purpose.
        """
        self.client.close()
        end = time.monotonic() + _SETTLE_S
        while True:
            gauges = self.gauges()
            time.sleep(_PAUSE_S)  # the server is done with that question, too
            now = self.holdings()
            kept = [f"{name} is {value:g}" for name, value in gauges.items() if value]
            kept += _kept(before, now, ("server", "engine") if same_engine else ("server",))
            if not kept or time.monotonic() > end:
                break
            time.sleep(0.5)
        for line in kept:
            finding.violations[f"not given back: {line}"] += 1
        for name in ("server", "engine") if same_engine else ("server",):
            held, after = before.memory[name], now.memory[name]
            finding.numbers[f"{name} memory, MiB"] = round(after / 2**20, 1)
            grown = finding.numbers[f"{name} grew, MiB"] = round((after - held) / 2**20, 1)
            if after > held * (1 + _MEMORY_SHARE) + caches.get(name, _MEMORY_BYTES):
                finding.missed.append(f"the {name} keeps {grown} MiB")
        self._check_log(finding)

    def _check_log(self, finding: Finding) -> None:
        """What nobody foresaw stands in the log with its traceback."""
        lines = self.log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if line.startswith("Traceback"):
                end = next((x for x in lines[number + 1 :] if x[:1] not in (" ", "")), "?")
                finding.violations[f"a traceback in the log: {end[:160]}"] += 1

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=REPLY_S) as answer:
            text: str = answer.read().decode()
        return text

    def _tasks(self) -> dict[str, int]:
        path = self.log.with_name("tasks")
        path.unlink(missing_ok=True)
        os.kill(self.server.pid, signal.SIGUSR2)
        wait_for(path.exists, REPLY_S, "the server's loop does not turn")
        counts: dict[str, int] = json.loads(path.read_text())
        return counts


def _kept(before: Holdings, now: Holdings, names: Sequence[str]) -> list[str]:
    """Say what is held beyond what was held before."""
    kept = [
        f"{count - before.tasks.get(name, 0)} tasks of {name}"
        for name, count in now.tasks.items()
        if count > before.tasks.get(name, 0)
    ]
    for name in names:
        for what, room in (("files", 0), ("threads", _POOLED_THREADS)):
            more = getattr(now, what)[name] - getattr(before, what)[name]
            if more > room:
                kept.append(f"{more} {what} of the {name}")
    return kept


@contextmanager
def serving(
    words: Sequence[str], sizes: Sizes, rng: random.Random, timeout_s: float = REPLY_S
) -> Iterator[Subject]:
    """Serve the demo pair until the block ends.

    Args:
        words: flags beside those that every phase has.
        sizes: how much of everything.
        rng: everything random comes from it.
        timeout_s: that a reply may take before it counts as hung.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        log = Path(folder) / "log"
        program = ("tests.chaos.watched_server", str(log.with_name("tasks")), "serve")
        flags = ["--threads", "1", "--log-level", "warning", "--kv-cache-memory", _CACHE, *words]
        with running_server(flags, log, program) as server:
            target = parse_target(server.url, {})
            with closing(HttpClient(target, time.monotonic, timeout_s)) as client:
                yield Subject(server, client, log, sizes, rng, [])
