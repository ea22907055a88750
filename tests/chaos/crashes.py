"""The engine killed and stopped under load: its streams end at once, and service comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil

from benchmarks.serving.http_stream import Reply
from tests.chaos.asks import long_ask
from tests.chaos.findings import Finding
from tests.chaos.sizes import Sizes
from tests.chaos.subject import Subject, serving
from tests.chaos.traffic import ask_any, ask_known
from tests.server_process import status_of

TOLD_S = 2.0
BACK_S = 10.0
WATCHDOG_S = 1
# An engine that rests says so every second, and has time for that.
RESTING_S = 4
# Longer than any kill waits for.
_ANSWER_TOKENS = 1500
_MAY = ("failed",)
# More than there are crashes; how long each start waits for the last ones is left as it is.
WORDS = ("--engine-restarts", "20", "--watchdog-s", str(WATCHDOG_S))


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Kill the engine again and again, and stop it once while it works and once while it rests."""
    with serving(WORDS, sizes, rng) as subject:
        asyncio.run(_crash(subject, finding))


async def _crash(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    await _kill_once(subject, finding, Counter())
    before = subject.settled()
    outcomes: Counter[str] = Counter()
    told: list[float] = []
    back: list[float] = []
    for _ in range(subject.sizes.kills):
        told_s, back_s = await _kill_once(subject, finding, outcomes)
        told.append(told_s)
        back.append(back_s)
    finding.numbers |= {"kills": len(back), **outcomes}
    finding.numbers["back after, s"] = [round(seconds, 2) for seconds in back]
    finding.within("longest until told", max(told), TOLD_S)
    finding.within("longest until back", max(back), BACK_S)
    for name, has_work in (("working", True), ("resting", False))[: subject.sizes.stops]:
        noticed_s, back_s = await _stop_once(subject, finding, outcomes, has_work=has_work)
        # The watchdog looks four times a second, and lets the engine say where it hangs.
        limit_s = WATCHDOG_S if has_work else RESTING_S
        finding.within(f"stopped while {name}, noticed", noticed_s, limit_s + 2.0)
        finding.within(f"stopped while {name}, back", back_s, BACK_S)
    subject.check(before, finding, same_engine=False)


async def _kill_once(
    subject: Subject, finding: Finding, outcomes: Counter[str]
) -> tuple[float, float]:
    """Kill a working engine; gives the seconds until all were told, and until it was back."""
    streams = await _busy_streams(subject, finding, outcomes)
    engine = subject.processes()["engine"]
    folder = Path(engine.cmdline()[-1].removeprefix("ipc://")).parent
    began = time.monotonic()
    engine.kill()
    replies = await asyncio.gather(*streams)
    told_s = max(reply.end_s for reply in replies) - began
    back_s = await _back(subject, began)
    finding.hold(not psutil.pid_exists(engine.pid), "the dead engine is a zombie")
    finding.hold(not folder.exists(), "the dead engine's socket is left behind")
    await _all_well(subject, finding)
    return told_s, back_s


async def _stop_once(
    subject: Subject, finding: Finding, outcomes: Counter[str], *, has_work: bool
) -> tuple[float, float]:
    """Stop an engine without ending it; gives the seconds until that is noticed, and mended."""
    streams = await _busy_streams(subject, finding, outcomes) if has_work else []
    engine = subject.processes()["engine"]
    began = time.monotonic()
    os.kill(engine.pid, signal.SIGSTOP)
    if has_work:
        replies = await asyncio.gather(*streams)
        noticed_s = max(reply.end_s for reply in replies) - began
    else:
        while await _status(subject, "/health") == 200:
            await asyncio.sleep(0.05)
        noticed_s = time.monotonic() - began
    back_s = await _back(subject, began + noticed_s)
    finding.hold(not psutil.pid_exists(engine.pid), "the stopped engine is still there")
    await _all_well(subject, finding)
    return noticed_s, back_s


async def _busy_streams(
    subject: Subject, finding: Finding, outcomes: Counter[str]
) -> list[asyncio.Task[Reply]]:
    """Open streams, and wait until every one of them has begun."""

    async def stream() -> Reply:
        # Nobody asks this twice: who is there at two crashes is refused from then on.
        ask = long_ask(subject.rng, _ANSWER_TOKENS)
        ending, reply = await ask_any(subject, ask, finding, _MAY)
        outcomes[ending.detail or ending.kind] += 1
        return reply

    tasks = [asyncio.create_task(stream()) for _ in range(subject.sizes.kill_streams)]
    while subject.gauges()["num_requests_running"] < len(tasks):
        assert not all(task.done() for task in tasks), "the answers were over too soon"
        await asyncio.sleep(0.02)
    await asyncio.sleep(subject.rng.random() * 0.1)
    return tasks


async def _back(subject: Subject, began: float) -> float:
    while await _status(subject, "/ready") != 200:
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < 120.0, "never ready again"
    return time.monotonic() - began


async def _status(subject: Subject, path: str) -> int:
    return await asyncio.to_thread(status_of, subject.url + path)


async def _all_well(subject: Subject, finding: Finding) -> None:
    """The new engine says what the first one said, and the server has one child."""
    await asyncio.gather(*(ask_known(subject, known, finding) for known in subject.known))
    children = psutil.Process(subject.server.pid).children(recursive=True)
    finding.hold(len(children) == 1, f"{len(children)} children")
    zombies = [child for child in children if child.status() == psutil.STATUS_ZOMBIE]
    finding.hold(not zombies, "a zombie")
