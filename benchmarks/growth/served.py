"""What our server costs: memory per idle stream, and its processor time beside the engine's.

The server is started as its command line says, in processes of its own. Streams are idle where one
request runs at a time and all others wait; processor time is the processes' own, so that what the
client takes of the machine is not in it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import TypeVar

import psutil

from benchmarks.growth.findings import Findings, Verdict, percent_text, spread_text
from benchmarks.growth.idle_engine import memory_verdict
from benchmarks.pages import Grid
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded
from benchmarks.serving.door import Door, open_door
from benchmarks.serving.http_stream import HttpClient, Reply, parse_target
from benchmarks.serving.load import closed_loop
from benchmarks.serving.processes import OwnServer, own_server
from benchmarks.serving.prompt_sets import CHAT, Ask
from benchmarks.serving.records import read_reply
from benchmarks.workloads import BUILT_IN
from engine.errors import EngineError, ModelLoadError

IDLE_BAR = 0.02
SERVER, ENGINE = "server", "engine"
_ENGINE_MODULE = "engine.client.engine_process"
_WARM_UP = 16
_TIMEOUT_S = 600.0
_POLL_S = 0.1
_SETTLE_S = 1.0
_KB = 1000.0
_OK = 200
_GAUGE = re.compile(r"^outdraft:num_requests_(?:running|waiting)\{.*\} (\S+)$", re.MULTILINE)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """What is asked of the server.

    Attributes:
        words: behind `outdraft serve`.
        start_s: that it may take to become ready.
        idle_streams: open at once, for memory.
        streams: busy at once, for processor time.
        requests: of a round of busy streams.
        answer_tokens: of each of them.
        idle_s: that a server without requests is watched for.
        repeats: rounds.
    """

    words: list[str]
    start_s: float
    idle_streams: int
    streams: int
    requests: int
    answer_tokens: int
    idle_s: float
    repeats: int


def idle_streams(plan: ServedPlan) -> Findings:
    """Measure how both processes grow with open streams that wait, a fresh server each round."""
    grown: dict[str, list[float]] = {SERVER: [], ENGINE: []}
    with show_progress(plan.repeats) as on_progress:
        for number in range(plan.repeats):
            on_progress(f"{plan.idle_streams} idle streams", float(number))
            with own_server([*plan.words, "--max-num-seqs", "1"], plan.start_s) as server:
                found = asyncio.run(_with_door(server, lambda d: _idle_growth(server, d, plan)))
            for name, kilobytes in found.items():
                grown[name].append(kilobytes)
    rows = [(name, spread_text(values, 1)) for name, values in grown.items()]
    title = f"memory of {plan.idle_streams} idle streams"
    return Findings(
        grids=[Grid(title, ("process", "grew, kB per stream"), rows)],
        verdicts=[
            memory_verdict(f"memory per idle stream, {name} process", median(values))
            for name, values in grown.items()
        ],
        rows=[
            {"state": "stream", "process": name, "streams": plan.idle_streams, "grown_kb": values}
            for name, values in rounded(grown).items()
        ],
    )


def processor_time(plan: ServedPlan) -> Findings:
    """Measure both processes' processor time, without requests and under busy streams."""
    with (
        own_server(plan.words, plan.start_s) as server,
        show_progress(2 * plan.repeats) as on_progress,
    ):
        found = asyncio.run(
            _with_door(server, lambda door: _processor_rounds(server, door, plan, on_progress))
        )
    return _processor_findings(found, plan)


def processes_of(server: OwnServer) -> dict[str, psutil.Process]:
    """Find the server's process and its engine's.

    Raises:
        ModelLoadError: there is no engine process.
    """
    top = psutil.Process(server.pid)
    for child in top.children(recursive=True):
        if _ENGINE_MODULE in child.cmdline():
            return {SERVER: top, ENGINE: child}
    raise ModelLoadError("the server has no engine process.")


async def _with_door(server: OwnServer, use: Callable[[Door], Awaitable[Result]]) -> Result:
    target = parse_target(server.url, {})
    with closing(HttpClient(target, time.perf_counter, _TIMEOUT_S)) as client:
        return await use(await open_door(client, CHAT, None, 0.0, fits=False))


async def _idle_growth(server: OwnServer, door: Door, plan: ServedPlan) -> dict[str, float]:
    """Give the kilobytes by which each process grew per stream that is open."""
    processes = processes_of(server)
    await _answers(door, _WARM_UP, 1, plan.answer_tokens, "warm-up")
    await asyncio.sleep(_SETTLE_S)
    before = {name: process.memory_info().rss for name, process in processes.items()}
    num_tokens = await _longest_answer(door)
    async with asyncio.TaskGroup() as group:
        streams = [
            group.create_task(door.send(_body(door, number, num_tokens, "idle")))
            for number in range(plan.idle_streams)
        ]
        await _all_open(server, streams)
        await asyncio.sleep(_SETTLE_S)
        num_open = sum(not stream.done() for stream in streams)
        after = {name: process.memory_info().rss for name, process in processes.items()}
        for stream in streams:
            stream.cancel()
    if not num_open:
        raise EngineError("all streams ended before they were counted; give more --idle-streams.")
    return {name: (after[name] - before[name]) / num_open / _KB for name in processes}


async def _all_open(server: OwnServer, streams: Sequence[asyncio.Task[Reply]]) -> None:
    """Wait until the engine has every stream that has not ended yet.

    Raises:
        EngineError: a stream ended without an answer.
    """
    while True:
        for stream in streams:
            if stream.done() and stream.result().status != _OK:
                raise EngineError(f"an idle stream ended with status {stream.result().status}.")
        counts = await asyncio.to_thread(_gauges, server.url)
        if sum(counts) >= sum(not stream.done() for stream in streams):
            return
        await asyncio.sleep(_POLL_S)


def _gauges(url: str) -> list[int]:
    """Give the requests that the engine has, running and waiting."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as response:
        text = response.read().decode()
    return [int(float(count)) for count in _GAUGE.findall(text)]


async def _longest_answer(door: Door) -> int:
    """Give the tokens of an answer that takes half of the model's context."""
    reply = await door.client.send("GET", "/models")
    return int(json.loads(reply.body)["data"][0]["context_length"]) // 2


@dataclass(slots=True)
class _Processor:
    """Seconds of processor time, by process and round.

    Attributes:
        idle: without requests.
        busy: for a round of busy streams.
        num_tokens: of their answers, by round.
    """

    idle: dict[str, list[float]]
    busy: dict[str, list[float]]
    num_tokens: list[int]


async def _processor_rounds(
    server: OwnServer, door: Door, plan: ServedPlan, on_progress: OnProgress
) -> _Processor:
    processes = processes_of(server)
    found = _Processor({SERVER: [], ENGINE: []}, {SERVER: [], ENGINE: []}, [])
    await _answers(door, plan.streams, plan.streams, plan.answer_tokens, "warm-up")
    for number in range(plan.repeats):
        on_progress("idle", 2.0 * number)
        await asyncio.sleep(_SETTLE_S)
        before = _seconds(processes)
        await asyncio.sleep(plan.idle_s)
        _add_growth(found.idle, before, _seconds(processes))
        on_progress(f"{plan.streams} streams", 2.0 * number + 1)
        before = _seconds(processes)
        salt = f"round {number}"
        found.num_tokens.append(
            await _answers(door, plan.requests, plan.streams, plan.answer_tokens, salt)
        )
        _add_growth(found.busy, before, _seconds(processes))
    return found


async def _answers(door: Door, count: int, concurrency: int, num_tokens: int, salt: str) -> int:
    """Ask for so many answers, and give their tokens.

    Raises:
        EngineError: one did not come whole.
    """
    bodies = [_body(door, number, num_tokens, salt) for number in range(count)]

    async def send(body: bytes, due_s: float | None) -> Reply:
        return await door.send(body)

    replies = await closed_loop(bodies, send, concurrency=concurrency)
    records = [read_reply(0, reply.sent_s, num_tokens, reply) for reply in replies]
    failure = next((r.failure for r in records if r.failure is not None), None)
    if failure is not None:
        raise EngineError(f"an answer did not come whole: {failure}.")
    return sum(record.num_output_tokens or 0 for record in records)


def _body(door: Door, number: int, num_tokens: int, salt: str) -> bytes:
    return door.body(Ask(BUILT_IN[number % len(BUILT_IN)]), num_tokens, number, salt)


def _seconds(processes: dict[str, psutil.Process]) -> dict[str, float]:
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: spent.user + spent.system for name, spent in times.items()}


def _add_growth(
    to: dict[str, list[float]], before: dict[str, float], after: dict[str, float]
) -> None:
    for name, seconds in to.items():
        seconds.append(after[name] - before[name])


def _processor_findings(found: _Processor, plan: ServedPlan) -> Findings:
    rows = []
    for name in (SERVER, ENGINE):
        per_token = [
            1e6 * seconds / tokens
            for seconds, tokens in zip(found.busy[name], found.num_tokens, strict=True)
        ]
        rows.append(
            (
                name,
                percent_text([seconds / plan.idle_s for seconds in found.idle[name]], 2),
                spread_text(found.busy[name], 2),
                spread_text(per_token, 0),
            )
        )
    idle = [sum(pair) / plan.idle_s for pair in zip(*found.idle.values(), strict=True)]
    shares = [s / e for s, e in zip(found.busy[SERVER], found.busy[ENGINE], strict=True)]
    busy_name = f"{plan.streams} streams"
    heads = ("process", f"idle for {plan.idle_s:g} s", f"{busy_name}, s", f"{busy_name}, us/token")
    return Findings(
        grids=[Grid("processor time", heads, rows)],
        verdicts=[
            Verdict(
                what=f"processor time at {busy_name}, server over engine",
                bar="< 1",
                measured=spread_text(shares, 2),
                is_met=median(shares) < 1.0,
            ),
            Verdict(
                what=f"processor time of an idle server, both processes, {plan.idle_s:g} s",
                bar=f"< {IDLE_BAR:.0%} of a core",
                measured=percent_text(idle, 2),
                is_met=median(idle) < IDLE_BAR,
            ),
        ],
        rows=[rounded(asdict(found))],
    )
