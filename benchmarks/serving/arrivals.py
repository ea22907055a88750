"""When requests come: at random at a rate, or as a trace has it."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from engine.errors import ConfigError

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One line of a trace.

    Attributes:
        arrival_s: seconds behind the first request of the trace.
        num_prompt_tokens: of its prompt.
        num_output_tokens: of its answer.
    """

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Give arrivals of a Poisson process, in seconds; the first request comes at once.

    Args:
        rate: requests per second on average.
        count: of requests.
        seed: the same seed gives the same arrivals; at twice the rate, they come twice as fast.
    """
    draw = random.Random(seed)
    arrivals, now = [], 0.0
    for _ in range(count):
        arrivals.append(now)
        now += draw.expovariate(1.0) / rate
    return arrivals


def stretched(arrivals_s: Sequence[float], rate: float) -> tuple[float, ...]:
    """Stretch arrivals so that they come at a rate exactly, from the first to the last.

    Args:
        arrivals_s: in order, from 0; not all of them there.
        rate: requests per second.
    """
    factor = (len(arrivals_s) - 1) / rate / arrivals_s[-1]
    return tuple(arrival * factor for arrival in arrivals_s)


def read_trace(path: Path, limit: int | None) -> list[TracedRequest]:
    """Read a trace of Azure's form: TIMESTAMP, ContextTokens, GeneratedTokens.

    Args:
        path: a CSV file.
        limit: requests at most, from the beginning; None = all.

    Raises:
        ConfigError: the file cannot be read, or has another form.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace: {path} cannot be read: {error}.") from error
    if not rows or any(column not in rows[0] for column in _COLUMNS):
        raise ConfigError(f"trace: {path} needs the columns {', '.join(_COLUMNS)} and a request.")
    first, requests = None, []
    for number, row in enumerate(rows[:limit], start=2):
        try:
            time = _time(row["TIMESTAMP"])
            counts = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"trace: line {number} of {path}: {error}.") from error
        first = first or time
        requests.append(TracedRequest((time - first).total_seconds(), *counts))
    return sorted(requests, key=lambda request: request.arrival_s)


def _time(text: str) -> datetime:
    """Read a time; its digits beyond microseconds are dropped, as datetime has no more."""
    whole, _, fraction = text.strip().partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}")
