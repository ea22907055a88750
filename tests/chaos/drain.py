"""SIGTERM under many streams: all of them finish, and the server is gone with status 0."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections import Counter

import psutil

from tests.chaos.asks import Ending, long_ask
from tests.chaos.findings import Finding
from tests.chaos.sizes import Sizes
from tests.chaos.subject import Subject, serving
from tests.chaos.traffic import ask_any, ask_known

DRAIN_S = 25.0
_LONG_TOKENS = 400


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Tell a busy server to end."""
    with serving(("--max-num-seqs", str(_num_seats(sizes))), sizes, rng) as subject:
        asyncio.run(_drain(subject, finding))


def _num_seats(sizes: Sizes) -> int:
    return sizes.drain_streams // 4


async def _drain(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    engine = subject.processes()["engine"]
    outcomes: Counter[str] = Counter()

    async def stream(number: int) -> None:
        ending = await _stream(subject, finding, number)
        outcomes[ending.detail or ending.kind] += 1

    # Long ones take all seats, so that the others are known to wait behind them.
    num_seats, num_streams = _num_seats(subject.sizes), subject.sizes.drain_streams
    streams = [asyncio.create_task(stream(number)) for number in range(num_seats)]
    await _until_open(subject, num_seats)
    streams += [asyncio.create_task(stream(number)) for number in range(num_seats, num_streams)]
    await _until_open(subject, num_streams)
    began = time.monotonic()
    subject.server.process.send_signal(signal.SIGTERM)
    finding.numbers |= {"streams": num_streams, "ended before": outcomes.total()}
    await asyncio.gather(*streams)
    status = await asyncio.to_thread(subject.server.process.wait, 60)
    finding.numbers |= outcomes
    finding.within("from signal to end", time.monotonic() - began, DRAIN_S)
    finding.hold(status == 0, f"exit status {status}")
    finding.hold(not psutil.pid_exists(engine.pid), "the engine is left behind")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = int(subject.url.rsplit(":", 1)[1])
        finding.hold(probe.connect_ex(("127.0.0.1", port)) != 0, "somebody still listens")


async def _stream(subject: Subject, finding: Finding, number: int) -> Ending:
    if number < _num_seats(subject.sizes):
        ask = long_ask(subject.rng, _LONG_TOKENS)
        ending, _ = await ask_any(subject, ask, finding)
    else:
        ending, _ = await ask_known(subject, subject.known[number % len(subject.known)], finding)
    return ending


async def _until_open(subject: Subject, num_requests: int) -> None:
    """Wait until the engine has as many requests; one with several answers counts for each."""
    while True:
        gauges = await asyncio.to_thread(subject.gauges)
        num_open = gauges["num_requests_running"] + gauges["num_requests_waiting"]
        if num_open >= num_requests:
            return
        await asyncio.sleep(0.01)
