"""Far more streams at once than the queue holds: each is answered or refused, health answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from tests.chaos.findings import Finding, percentile
from tests.chaos.health_watch import health_watch
from tests.chaos.sizes import Sizes
from tests.chaos.subject import Subject, serving
from tests.chaos.traffic import ask_known

HEALTH_S = 0.25
_MAY = ("refused",)


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Storm a server with a small queue."""
    words = ("--max-queue", str(sizes.storm_queue), "--max-num-seqs", "16")
    with serving(words, sizes, rng) as subject:
        asyncio.run(_storm(subject, finding))


async def _storm(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    await _round(subject, finding)
    before = subject.settled()
    outcomes: Counter[str] = Counter()
    longest = 0.0
    with health_watch(subject.url) as health:
        for _ in range(subject.sizes.storm_rounds):
            counted, seconds = await _round(subject, finding)
            outcomes += counted
            longest = max(longest, seconds)
    finding.numbers |= {"streams": outcomes.total(), **outcomes}
    finding.numbers["longest, s"] = round(longest, 2)
    finding.hold(outcomes["served"] > 0, "nobody was served")
    refused = {name for name in outcomes if name != "served"}
    finding.hold(all(name.startswith("429 ") for name in refused), f"refused as {refused}")
    finding.hold(health.num_failures == 0, "/health failed")
    finding.numbers["health asked"] = len(health.seconds)
    finding.numbers["health p50, s"] = round(percentile(health.seconds, 0.5), 4)
    finding.within("health p99", percentile(health.seconds, 0.99), HEALTH_S)
    subject.check(before, finding)


async def _round(subject: Subject, finding: Finding) -> tuple[Counter[str], float]:
    """Ask everything at once; gives how it ended, and the longest of it in seconds."""
    known = subject.known
    asked = [known[number % len(known)] for number in range(subject.sizes.storm_streams)]
    done = await asyncio.gather(*(ask_known(subject, k, finding, _MAY) for k in asked))
    outcomes = Counter(ending.detail or ending.kind for ending, _ in done)
    return outcomes, max(reply.end_s - reply.sent_s for _, reply in done)
