"""What listeners of `/statistics` cost a server: its tokens per second with them and without.

A server is started in processes of its own and asked the same by turns, with and without
listeners, the order turned round each time. Beside the rate stands the processor time of both
processes per token, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from statistics import median
from urllib.parse import urlsplit

import psutil
from rich.console import Console

from benchmarks.growth.findings import Verdict, percent_text, spread_text, verdict_grid
from benchmarks.growth.served import processes_of
from benchmarks.pages import Grid, Page, show_page
from benchmarks.program import add_output_flags, run_program, write_output
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import rounded, settings_of
from benchmarks.serving.door import Door, open_door
from benchmarks.serving.http_stream import HttpClient, Reply, parse_target
from benchmarks.serving.load import closed_loop
from benchmarks.serving.processes import OwnServer, engine_words, own_server
from benchmarks.serving.prompt_sets import CHAT, Ask
from benchmarks.serving.records import read_reply
from benchmarks.workbench import check_at_least
from benchmarks.workloads import BUILT_IN
from engine.config_flags import add_config_flags
from engine.errors import EngineError

BAR = 0.01
_TIMEOUT_S = 600.0
_COUNTS = {
    "listeners": (5, "of /statistics at once"),
    "repeats": (12, "rounds with listeners, and as many without"),
    "streams": (4, "answers at once"),
    "requests": (48, "of a round"),
    "answer_tokens": (64, "of each answer"),
}


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gave.

    Attributes:
        tokens_per_second: of all answers.
        processor_us: processor time of server and engine per token, in microseconds.
    """

    tokens_per_second: float
    processor_us: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A round without listeners and one with them, next to each other.

    Attributes:
        alone: without.
        watched: with.
        num_events: statistics that the listeners were told meanwhile.
    """

    alone: Round
    watched: Round
    num_events: int

    @property
    def loss(self) -> float:
        """The share of tokens per second that the listeners cost."""
        return 1.0 - self.watched.tokens_per_second / self.alone.tokens_per_second

    @property
    def more_processor(self) -> float:
        """The share by which they raise processor time per token."""
        return self.watched.processor_us / self.alone.processor_us - 1.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    group = parser.add_argument_group("what is measured")
    for name, (count, what) in _COUNTS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=int, default=count, help=f"{what} (default: {count})")
    group.add_argument(
        "--interval-s", type=float, default=1.0, help="of what they are told (default: 1)"
    )
    group.add_argument(
        "--start-s", type=float, default=900.0, help="that a server may take (default: 900)"
    )
    add_output_flags(parser, "statistics_cost")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a value cannot be measured.
        ModelLoadError: the server did not start.
        EngineError: it did not answer.
    """
    for name in _COUNTS:
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    check_at_least("interval-s", args.interval_s, 0.25)
    console = Console()
    with (
        own_server(engine_words(args), args.start_s) as server,
        show_progress(args.repeats) as on_progress,
    ):
        pairs = asyncio.run(_measure(args, server, on_progress))
    verdict = _verdict(args, pairs)
    show_page(console, _page(args, pairs, verdict))
    rows = rounded([asdict(pair) for pair in pairs])
    content = {"settings": settings_of(args), "verdict": asdict(verdict), "rows": rows}
    write_output(args, console, content)
    return 0


async def _measure(
    args: argparse.Namespace, server: OwnServer, on_progress: OnProgress
) -> list[Pair]:
    target = parse_target(server.url, {})
    with closing(HttpClient(target, time.perf_counter, _TIMEOUT_S)) as client:
        door = await open_door(client, CHAT, None, 0.0, fits=False)
        await _answers(args, door, "warm-up")
        pairs = []
        for number in range(args.repeats):
            on_progress(f"round {number + 1}", float(number))
            pairs.append(await _pair(args, server, door, number))
        return pairs


async def _pair(args: argparse.Namespace, server: OwnServer, door: Door, number: int) -> Pair:
    """Measure with and without listeners; every other time the other way round."""
    found: dict[bool, Round] = {}
    num_events = 0
    for is_watched in (number % 2 == 0, number % 2 == 1):
        salt = f"{number} {is_watched}"
        if not is_watched:
            found[is_watched] = await _round(args, server, door, salt)
            continue
        async with _listening(args, server.url) as counts:
            found[is_watched] = await _round(args, server, door, salt)
        num_events = sum(counts)
    return Pair(found[False], found[True], num_events)


async def _round(args: argparse.Namespace, server: OwnServer, door: Door, salt: str) -> Round:
    processes = list(processes_of(server).values())
    began, before = time.perf_counter(), _processor_seconds(processes)
    num_tokens = await _answers(args, door, salt)
    seconds = time.perf_counter() - began
    spent = _processor_seconds(processes) - before
    return Round(num_tokens / seconds, 1e6 * spent / num_tokens)


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(spent.user + spent.system for spent in times)


async def _answers(args: argparse.Namespace, door: Door, salt: str) -> int:
    """Ask for the answers of a round, and give their tokens.

    Raises:
        EngineError: one did not come whole.
    """
    bodies = [
        door.body(Ask(BUILT_IN[place % len(BUILT_IN)]), args.answer_tokens, place, salt)
        for place in range(args.requests)
    ]

    async def send(body: bytes, due_s: float | None) -> Reply:
        return await door.send(body)

    replies = await closed_loop(bodies, send, concurrency=args.streams)
    records = [read_reply(0, reply.sent_s, args.answer_tokens, reply) for reply in replies]
    failure = next((r.failure for r in records if r.failure is not None), None)
    if failure is not None:
        raise EngineError(f"an answer did not come whole: {failure}.")
    return sum(record.num_output_tokens or 0 for record in records)


@asynccontextmanager
async def _listening(args: argparse.Namespace, url: str) -> AsyncIterator[list[int]]:
    """Let listeners read; gives how many events each has been told once the block is left."""
    counts = [0] * args.listeners
    ready = [asyncio.Event() for _ in counts]

    async def listen(place: int) -> None:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        path = f"/statistics?interval_s={args.interval_s}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        try:
            async for line in reader:
                counts[place] += line.startswith(b"event: statistics")
                if counts[place]:
                    ready[place].set()
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(listen(place)) for place in range(args.listeners)]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in ready)), _TIMEOUT_S)
        yield counts
        for task in tasks:
            task.cancel()


def _verdict(args: argparse.Namespace, pairs: Sequence[Pair]) -> Verdict:
    losses = [pair.loss for pair in pairs]
    return Verdict(
        what=f"tokens/s that {args.listeners} listeners cost",
        bar=f"< {BAR:.0%}",
        measured=percent_text(losses),
        is_met=median(losses) < BAR,
    )


def _page(args: argparse.Namespace, pairs: Sequence[Pair], verdict: Verdict) -> Page:
    rows = [
        (
            name,
            spread_text([r.tokens_per_second for r in rounds], 0),
            spread_text([r.processor_us for r in rounds], 0),
        )
        for name, rounds in (
            ("without", [pair.alone for pair in pairs]),
            (f"with {args.listeners}", [pair.watched for pair in pairs]),
        )
    ]
    more = percent_text([pair.more_processor for pair in pairs])
    return Page(
        title="What listeners of /statistics cost",
        facts={"rounds": str(args.repeats), "answers at once": str(args.streams)},
        grids=[
            Grid("rounds", ("listeners", "tokens/s", "processor us/token"), rows),
            verdict_grid([verdict]),
        ],
        notes=[f"processor time per token rises by {more}; medians, and ranges of all rounds"],
    )


if __name__ == "__main__":
    sys.exit(run_program(__doc__, add_flags, run))
