"""Far more streams at once than the queue holds: each is answered or refused, health answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from tests.chaos.findings import Finding, percentile
from tests.chaos.health_watch import health_watch
from tests.chaos.sizes import Sizes
from tests.chaos.subject import Subject, serving
from tests.chaos.traffic import ask_known

HEALTH_S = 0.25
_MAY = ("refused",)
_WARM_UP_S = 2.0
# What is refused comes again, less patient than its Retry-After asks for.
_MOST_PATIENCE_S = 6.0


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Storm a server with a small queue."""
    words = ("--max-queue", str(sizes.storm_queue), "--max-num-seqs", "16")
    with serving(words, sizes, rng) as subject:
        asyncio.run(_storm(subject, finding))


async def _storm(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    await _rage(subject, finding, min(_WARM_UP_S, subject.sizes.storm_s))
    before = subject.settled()
    with health_watch(subject.url) as health:
        outcomes, longest = await _rage(subject, finding, subject.sizes.storm_s)
    finding.numbers |= {"streams": outcomes.total(), **outcomes}
    finding.numbers["longest, s"] = round(longest, 2)
    finding.hold(outcomes["served"] > 0, "nobody was served")
    refused = {name for name in outcomes if name != "served"}
    finding.hold(all(name.startswith("429 ") for name in refused), f"refused as {refused}")
    finding.hold(health.num_failures == 0, "/health failed")
    finding.numbers["health asked"] = len(health.seconds)
    finding.numbers["health p50, s"] = round(percentile(health.seconds, 0.5), 4)
    finding.numbers["health longest, s"] = round(max(health.seconds, default=0.0), 3)
    finding.within("health p99", percentile(health.seconds, 0.99), HEALTH_S)
    subject.check(before, finding)


async def _rage(subject: Subject, finding: Finding, seconds: float) -> tuple[Counter[str], float]:
    """Let everybody come at once, and again and again; how it ended, and the longest seconds."""
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    longest = 0.0

    async def insist(number: int) -> None:
        nonlocal longest
        while True:
            known = subject.known[number % len(subject.known)]
            ending, reply = await ask_known(subject, known, finding, _MAY)
            outcomes[ending.detail or ending.kind] += 1
            longest = max(longest, reply.end_s - reply.sent_s)
            if time.monotonic() > end:
                return
            if ending.kind == "refused":
                await asyncio.sleep(subject.rng.random() * min(_MOST_PATIENCE_S, seconds))

    await asyncio.gather(*map(insist, range(subject.sizes.storm_streams)))
    return outcomes, longest
