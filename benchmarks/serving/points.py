"""Runs the points of a measurement, in rounds, so that drift of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from benchmarks.rounds import Numbers, over_rounds
from benchmarks.serving.client_cost import metered
from benchmarks.serving.door import Door
from benchmarks.serving.energy import Meter, joules_since, readings
from benchmarks.serving.http_stream import Reply
from benchmarks.serving.load import Send, closed_loop, open_loop
from benchmarks.serving.prompt_sets import Ask
from benchmarks.serving.records import Record, read_reply
from benchmarks.serving.statistics import Terms, errors_by_kind, summarise

CLOCK = time.perf_counter
OnShare = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Load:
    """One point.

    Attributes:
        label: in tables.
        place: on the axis of charts.
        num_requests: of a round.
        concurrency: streams of a closed loop; None = an open one.
        arrivals_s: of an open loop, seconds behind its beginning; empty = a closed one.
    """

    label: str
    place: float
    num_requests: int
    concurrency: int | None = None
    arrivals_s: tuple[float, ...] = ()


class Sent(NamedTuple):
    """A request that was answered, or failed; the fields are those of `read_reply`."""

    number: int
    due_s: float
    asked_tokens: int
    reply: Reply


@dataclass(slots=True)
class Point:
    """What was measured of a load.

    Attributes:
        load: what was asked.
        rounds: numbers of each round.
        errors: failures of all rounds by kind.
        num_short: whole answers with fewer tokens than asked for.
    """

    load: Load
    rounds: list[Numbers] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    num_short: int = 0

    @property
    def spread(self) -> dict[str, tuple[float, ...] | None]:
        """Median, lowest and highest of the rounds."""
        return over_rounds(self.rounds)

    def add(self, records: Sequence[Record], numbers: Numbers) -> None:
        """Add a round."""
        self.rounds.append(numbers)
        for kind, count in errors_by_kind(records).items():
            self.errors[kind] = self.errors.get(kind, 0) + count
        self.num_short += sum(
            record.failure is None and (record.num_output_tokens or 0) < record.asked_tokens
            for record in records
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Asks one server.

    Attributes:
        door: how it wants to be asked.
        asks: prompts in turn, ready to be sent; the same at every point.
        max_tokens: of answers whose prompt says nothing else.
        seed: of sampling.
        terms: what is held against the results.
        meters: of energy.
    """

    door: Door
    asks: Sequence[Ask]
    max_tokens: int
    seed: int
    terms: Terms
    meters: Sequence[Meter] = ()

    async def warm_up(self, count: int, concurrency: int) -> None:
        """Send requests that are not counted."""
        send = self._sender(count, f"{self.seed}-warm-up")
        await closed_loop(range(count), send, concurrency=concurrency)

    async def measure(
        self, loads: Sequence[Load], rounds: int, on_progress: Callable[[str, float], None]
    ) -> list[Point]:
        """Measure every load in each round.

        Args:
            loads: the points.
            rounds: how often.
            on_progress: is told the point, and how many are done.
        """
        points = [Point(load) for load in loads]
        for number in range(rounds):
            for place, point in enumerate(points):
                done = float(number * len(points) + place)
                on_progress(point.load.label, done)
                count = point.load.num_requests

                def on_share(
                    share: float, done: float = done, name: str = point.load.label
                ) -> None:
                    on_progress(name, done + share)

                records, numbers = await self.run_round(
                    point.load, f"round-{number}-point-{place}", counting(count, on_share)
                )
                point.add(records, numbers)
        return points

    async def run_round(
        self, load: Load, salt: str, on_done: Callable[[object], None]
    ) -> tuple[list[Record], Numbers]:
        """Measure a load once.

        Args:
            load: the point.
            salt: rounds of different salts find nothing of each other in a prefix cache.
            on_done: hears of each request.
        """
        numbers = range(load.num_requests)
        send = self._sender(load.num_requests, f"{self.seed}-{salt}")
        before = readings(self.meters)
        async with metered() as cost:
            if load.concurrency is not None:
                replies = await closed_loop(
                    numbers, send, concurrency=load.concurrency, on_done=on_done
                )
            else:
                replies = await open_loop(
                    numbers, send, arrivals_s=load.arrivals_s, clock=CLOCK, on_done=on_done
                )
        joules = joules_since(self.meters, before)
        # Events are read only now: while they come, the client should do as little as it can.
        records = [read_reply(*sent) for sent in replies]
        num_events = sum(len(sent.reply.events) for sent in replies)
        terms = replace(self.terms, concurrency=load.concurrency)
        found = summarise(records, terms) | cost.numbers(num_events)
        found["joules"] = joules
        tokens = sum(record.num_output_tokens or 0 for record in records)
        found["joules_per_token"] = None if joules is None or not tokens else joules / tokens
        return records, found

    def _sender(self, count: int, salt: str) -> Send[int, Sent]:
        """Write all requests, and give what sends one by its number."""
        bodies = [self._request(number, salt) for number in range(count)]

        async def send(number: int, due_s: float | None) -> Sent:
            body, asked_tokens = bodies[number]
            reply = await self.door.send(body)
            return Sent(number, reply.sent_s if due_s is None else due_s, asked_tokens, reply)

        return send

    def _request(self, number: int, salt: str) -> tuple[bytes, int]:
        ask = self.asks[number % len(self.asks)]
        asked_tokens = ask.num_output_tokens or self.max_tokens
        return self.door.body(ask, asked_tokens, self.seed + number, salt), asked_tokens


def counting(count: int, on_share: OnShare) -> Callable[[object], None]:
    """Give what hears of each request and tells their share of so many."""
    done = 0

    def on_done(result: object) -> None:
        nonlocal done
        done += 1
        on_share(done / count)

    return on_done
