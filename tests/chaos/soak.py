"""Mixed traffic for a while: neither memory nor the time between tokens drifts."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from statistics import median
from typing import NamedTuple

from tests.chaos.asks import long_ask
from tests.chaos.findings import Finding, percentile
from tests.chaos.hostile_bodies import make_hostile
from tests.chaos.rude_clients import leave_early
from tests.chaos.sizes import Sizes
from tests.chaos.subject import Subject, serving
from tests.chaos.traffic import good_company

WORDS = ("--max-model-len", "512")
ITL_RATIO = 1.25
MEMORY_SHARE = 0.05
MEMORY_BYTES = 4 * 2**20
_FIFTHS = 5
_STEADY_TOKENS = 128
_HOSTILE_PAUSE_S = 0.1
_SAMPLE_S = 0.5
# What the phase of hostile requests measures: large bodies, and grammars that stay compiled.
_WITH_MEMORIES = ("large", "many tokens", "shaped")
_WARM_UP_S = 10.0


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Let everybody come at once for as long as is said."""
    with serving(WORDS, sizes, rng) as subject:
        asyncio.run(_soak(subject, finding))


async def _soak(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    seconds = subject.sizes.soak_s
    await _mix(subject, finding, min(_WARM_UP_S, seconds))
    before = subject.settled()
    gaps, samples = await _mix(subject, finding, seconds)
    _judge_gaps(finding, gaps, seconds)
    _tell_work(finding, samples, seconds)
    _judge_memory(finding, samples, seconds)
    subject.check(before, finding)


Gap = tuple[float, float]


class Sample(NamedTuple):
    """What the server is like at a moment.

    Attributes:
        at: seconds since the traffic began.
        memory: resident bytes, by process.
        cpu_s: that the engine has computed for so far.
        num_tokens: that it has generated so far.
    """

    at: float
    memory: dict[str, int]
    cpu_s: float
    num_tokens: int


async def _mix(
    subject: Subject, finding: Finding, seconds: float
) -> tuple[list[Gap], list[Sample]]:
    """Give the gaps between tokens, each with its moment, and what the server was like."""
    began = time.monotonic()
    end = began + seconds
    counts: Counter[str] = Counter()
    gaps: list[Gap] = []
    samples: list[Sample] = []

    async def stream_steadily() -> None:
        while time.monotonic() < end:
            ask = long_ask(subject.rng, _STEADY_TOKENS)
            reply = await subject.client.send("POST", ask.path, ask.sent())
            times = [at for at, _ in reply.events]
            gaps.extend(
                (later - began, later - at) for at, later in zip(times, times[1:], strict=False)
            )
            counts["steady streams"] += 1

    async def leave_again_and_again() -> None:
        while time.monotonic() < end:
            await leave_early(subject, random.Random(subject.rng.randrange(2**31)), counts)

    async def be_hostile() -> None:
        client = subject.root_client()
        while time.monotonic() < end:
            hostile = make_hostile(random.Random(subject.rng.randrange(2**31)))
            if hostile.kind not in _WITH_MEMORIES:
                await client.send("POST", hostile.path, hostile.body)
                counts["hostile requests"] += 1
            await asyncio.sleep(_HOSTILE_PAUSE_S)
        client.close()

    async def look() -> None:
        processes = subject.processes()
        while time.monotonic() < end:
            held = {name: process.memory_info().rss for name, process in processes.items()}
            times = processes["engine"].cpu_times()
            num_tokens = await asyncio.to_thread(subject.num_generated_tokens)
            at = time.monotonic() - began
            samples.append(Sample(at, held, times.user + times.system, num_tokens))
            await asyncio.sleep(_SAMPLE_S)

    async with good_company(subject, finding):
        await asyncio.gather(
            stream_steadily(),
            leave_again_and_again(),
            leave_again_and_again(),
            be_hostile(),
            look(),
        )
    finding.numbers |= {"seconds": seconds, **dict(sorted(counts.items()))}
    return gaps, samples


def _judge_gaps(finding: Finding, gaps: list[Gap], seconds: float) -> None:
    """Compare the gaps of the last fifth of the time with those of the first."""
    fifth = seconds / _FIFTHS
    medians = [
        percentile([gap for at, gap in gaps if place * fifth <= at < (place + 1) * fifth], 0.5)
        for place in range(_FIFTHS)
    ]
    first, last = medians[0], medians[-1]
    finding.numbers |= {"ITL p50 by fifth, ms": [round(gap * 1e3, 2) for gap in medians]}
    finding.numbers["gaps"] = len(gaps)
    if last > first * ITL_RATIO:
        finding.missed.append(f"ITL p50 drifts from {first * 1e3:.2f} to {last * 1e3:.2f} ms")


def _tell_work(finding: Finding, samples: list[Sample], seconds: float) -> None:
    """Write down what a token costs the engine, which other work on the machine hardly changes."""
    costs = []
    for place in range(_FIFTHS):
        begin, end = (seconds / _FIFTHS * edge for edge in (place, place + 1))
        within = [sample for sample in samples if begin <= sample.at < end]
        if len(within) > 1 and within[-1].num_tokens > within[0].num_tokens:
            spent_s = within[-1].cpu_s - within[0].cpu_s
            costs.append(1e3 * spent_s / (within[-1].num_tokens - within[0].num_tokens))
    finding.numbers["engine CPU per token by fifth, ms"] = [round(cost, 3) for cost in costs]


def _judge_memory(finding: Finding, samples: list[Sample], seconds: float) -> None:
    """Compare the memory of the last fifth of the time with that of the second."""
    fifth = seconds / _FIFTHS
    for name in ("server", "engine"):
        early = [sample.memory[name] for sample in samples if fifth <= sample.at < 2 * fifth]
        late = [sample.memory[name] for sample in samples if sample.at >= seconds - fifth]
        if not early or not late:
            continue
        start, stop = median(early), median(late)
        finding.numbers[f"{name} drift, MiB"] = round((stop - start) / 2**20, 1)
        if stop > start * (1 + MEMORY_SHARE) + MEMORY_BYTES:
            finding.missed.append(f"the {name}'s memory drifts by {(stop - start) / 2**20:.1f} MiB")
