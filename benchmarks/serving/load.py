"""Puts load on something that answers: closed by a number of streams, or open by arrivals.

It knows jobs and when they start; what sends them, and the clock, are handed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from benchmarks.serving.http_stream import Clock

Job = TypeVar("Job")
Result = TypeVar("Result")
Send = Callable[[Job, float | None], Awaitable[Result]]
"""Sends a job that was due at a time (None = now) and gives what came of it."""
Sleep = Callable[[float], Awaitable[None]]


async def closed_loop(
    jobs: Sequence[Job],
    send: Send[Job, Result],
    *,
    concurrency: int,
    on_done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Keep so many jobs in flight until all are done; each that ends is followed by the next.

    Returns:
        Results in the order in which they were done.
    """
    waiting, results = iter(jobs), []

    async def stream() -> None:
        for job in waiting:
            result = await send(job, None)
            results.append(result)
            on_done(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(jobs))):
            group.create_task(stream())
    return results


async def open_loop(
    jobs: Sequence[Job],
    send: Send[Job, Result],
    *,
    arrivals_s: Sequence[float],
    clock: Clock,
    sleep: Sleep = asyncio.sleep,
    on_done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Start each job at its time, whatever became of those before.

    Args:
        jobs: in order of arrival.
        send: is told when the job was due, so that a late start counts as waiting.
        arrivals_s: seconds behind the beginning, one for each job.
        clock: gives the time.
        sleep: waits for so many seconds.
        on_done: hears of each result.

    Returns:
        Results in the order in which they were done.
    """
    results, begin = [], clock()

    async def run(job: Job, due_s: float) -> None:
        result = await send(job, due_s)
        results.append(result)
        on_done(result)

    async with asyncio.TaskGroup() as group:
        for job, arrival_s in zip(jobs, arrivals_s, strict=True):
            due_s = begin + arrival_s
            if (wait_s := due_s - clock()) > 0:
                await sleep(wait_s)
            group.create_task(run(job, due_s))
    return results
