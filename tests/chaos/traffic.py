"""Well-behaved clients: whatever happens around them, they get what a quiet server would give."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from benchmarks.serving.http_stream import Reply
from tests.chaos.asks import Ask, Ending, Known, ending_of
from tests.chaos.findings import Finding
from tests.chaos.subject import Subject

NOBODY: Collection[str] = ()


async def ask_known(
    subject: Subject, known: Known, finding: Finding, may: Collection[str] = NOBODY
) -> tuple[Ending, Reply]:
    """Send a request whose answer is known, and judge the answer.

    Args:
        subject: the server.
        known: the request.
        finding: hears of broken laws.
        may: kinds of endings that are no breach, beside being served.
    """
    ask = known.ask
    reply = await subject.client.send("POST", ask.path, ask.sent())
    ending = ending_of(reply, ask.num_choices)
    if ending.kind == "served":
        finding.hold(ending.words == known.words, "other words than on a quiet server")
    else:
        finding.hold(ending.kind in may, f"{ending.kind}: {ending.detail}")
    return ending, reply


async def ask_any(
    subject: Subject, ask: Ask, finding: Finding, may: Collection[str] = NOBODY
) -> tuple[Ending, Reply]:
    """The same for a request whose words are not known."""
    reply = await subject.client.send("POST", ask.path, ask.sent())
    ending = ending_of(reply, ask.num_choices)
    finding.hold(ending.kind in ("served", *may), f"{ending.kind}: {ending.detail}")
    return ending, reply


@asynccontextmanager
async def good_company(
    subject: Subject, finding: Finding, num_clients: int = 4
) -> AsyncIterator[Counter[str]]:
    """Let a few clients ask known requests, one after the other, until the block ends.

    Yields:
        How many were served so far; the last ones are waited for.
    """
    served: Counter[str] = Counter()
    longest = 0.0
    is_over = asyncio.Event()

    async def go_on(number: int) -> None:
        nonlocal longest
        while not is_over.is_set():
            known = subject.known[number % len(subject.known)]
            number += num_clients
            ending, reply = await ask_known(subject, known, finding)
            served[ending.kind] += 1
            longest = max(longest, reply.end_s - reply.sent_s)

    async with asyncio.TaskGroup() as group:
        for number in range(num_clients):
            group.create_task(go_on(number))
        try:
            yield served
        finally:
            is_over.set()
    finding.numbers["good requests served"] = served["served"]
    finding.numbers["longest good request, s"] = round(longest, 2)
