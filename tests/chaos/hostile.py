"""Thousands of hostile requests: each is answered, none with a 500, and good ones get through."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from tests.chaos.findings import Finding, percentile
from tests.chaos.health_watch import health_watch
from tests.chaos.hostile_bodies import Hostile, make_hostile
from tests.chaos.raw_client import RawClient
from tests.chaos.sizes import Sizes
from tests.chaos.subject import REPLY_S, Subject, serving
from tests.chaos.traffic import good_company

# Answers without a limit fill the context, so it is short.
WORDS = ("--max-model-len", "256", "--body-timeout", "5")
GOOD_S = 30.0
# In the engine, grammars (`MAX_COMPILED_BYTES`, and automata that grow as they are used); in the
# server, what malloc keeps of bodies of 10 MB, several at once.
_CACHES = {"engine": 384 * 2**20, "server": 64 * 2**20}
_AT_ONCE = 16
_RAW_SHARE = 0.02
_SHOWN_BYTES = 300
_NUM_SAMPLES = 10
# A request may ask for less time than it needs.
_DEADLINE_PASSED = 504
_RAW = (
    *(b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\r\n" * 500, b"A" * 70_000),
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{",
    b"GET /v1/models/%00%ff%2e%2e HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/responses/x?stream=true&starting_after=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"DELETE /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 60_000 + b"\r\n\r\n",
)


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Send what nobody should send, beside clients that behave."""
    with serving(WORDS, sizes, rng) as subject:
        asyncio.run(_attack(subject, finding))


async def _attack(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    count = subject.sizes.hostile
    await _send_all(subject, finding, max(100, count // 10))
    before = subject.settled()
    with health_watch(subject.url) as health:
        async with good_company(subject, finding, 2):
            await _send_all(subject, finding, count)
    finding.hold(health.num_failures == 0, "/health failed")
    finding.numbers["health p99, s"] = round(percentile(health.seconds, 0.99), 4)
    finding.numbers["health longest, s"] = round(max(health.seconds, default=0.0), 3)
    finding.within("longest good request", finding.numbers["longest good request, s"], GOOD_S)
    subject.check(before, finding, caches=_CACHES)


async def _send_all(subject: Subject, finding: Finding, count: int) -> None:
    statuses: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    memory: dict[str, list[int]] = {"server": [], "engine": []}
    processes = subject.processes()
    client = subject.root_client()
    left = iter(range(count))

    async def go_on() -> None:
        for number in left:
            if number % max(1, count // _NUM_SAMPLES) == 0:
                for name, process in processes.items():
                    memory[name].append(round(process.memory_info().rss / 2**20))
            rng = random.Random(subject.rng.randrange(2**31))
            if rng.random() < _RAW_SHARE:
                kinds["raw bytes"] += 1
                await _send_raw(subject, rng, finding)
                continue
            hostile = make_hostile(rng)
            kinds[hostile.kind] += 1
            reply = await client.send("POST", hostile.path, hostile.body)
            slowest[hostile.kind] = max(
                slowest.get(hostile.kind, 0.0), round(reply.end_s - reply.sent_s, 3)
            )
            statuses[str(reply.status)] += 1
            is_well = reply.failure is None and (
                reply.status is not None and reply.status < 500 or reply.status == _DEADLINE_PASSED
            )
            finding.hold(is_well, _complaint(hostile, reply.status, reply.failure))
            for _, data in reply.events:
                is_late = b"request_timeout" in data
                is_inside = not is_late and (b'"server_error"' in data or b'"api_error"' in data)
                finding.hold(not is_inside, _complaint(hostile, reply.status, data.decode()))

    await asyncio.gather(*(go_on() for _ in range(_AT_ONCE)))
    client.close()
    finding.numbers |= {f"{name} by tenth, MiB": found for name, found in memory.items()}
    finding.numbers |= {"hostile requests": kinds.total(), "by kind": dict(kinds)}
    finding.numbers |= {"statuses": dict(sorted(statuses.items())), "slowest, s": slowest}


async def _send_raw(subject: Subject, rng: random.Random, finding: Finding) -> None:
    """Send what is no HTTP; the server answers with an error or hangs up, within its limits."""
    client = RawClient(subject.url)
    await client.connect()
    await client.send(rng.choice(_RAW))
    try:
        told = await asyncio.wait_for(client.read_until(b"\r\n"), REPLY_S)
        status = told[9:12]
        finding.hold(not status.startswith(b"5"), f"raw bytes got {status.decode()}")
    except TimeoutError:
        finding.violations["raw bytes: neither answered nor hung up"] += 1
    client.leave(rudely=rng.random() < 0.5)


def _complaint(hostile: Hostile, status: int | None, failure: str | None) -> str:
    shown = hostile.body[:_SHOWN_BYTES].decode(errors="replace")
    return f"{status} {failure} to {hostile.kind}: {hostile.path} {shown}"
