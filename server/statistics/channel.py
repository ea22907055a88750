"""Reads the metrics once per interval while somebody listens, and tells all listeners the same.

A listener who is slow misses what came in between; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from engine.client.supervision import EngineState
from server.protocol.statistics import Statistics
from server.served import Served
from server.statistics.reading import Reading, read
from server.statistics.summary import Span, summarise

_HISTORY_S = 600.0
_MINUTE_S = 60.0
# A server that ends does not wait for a long interval.
_LOOK_S = 0.25
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Told:
    """What was told last.

    Attributes:
        number: of it, from 1.
        frame: as it is sent.
    """

    number: int
    frame: bytes


class Channel:
    """What is told at one interval; it reads from `open` to `close`.

    Args:
        served: what is read.
        interval_s: seconds from one telling to the next.
        price_per_hour: see `ServerConfig`.

    Attributes:
        num_listeners: who listen; whoever opens it keeps count.
    """

    def __init__(self, served: Served, interval_s: float, price_per_hour: float | None) -> None:
        self.num_listeners = 0
        self._served = served
        self._interval_s = interval_s
        self._price_per_hour = price_per_hour
        self._minute: deque[Reading] = deque()
        self._history: deque[bytes] = deque(maxlen=math.ceil(_HISTORY_S / interval_s))
        self._told: Told | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name="statistics")
        self._task.add_done_callback(lambda _task: self._wake())

    def close(self) -> None:
        """Read no more."""
        assert self._task is not None, "it was opened"
        self._task.cancel()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Give what was told in the last minutes, then the last telling, then each as it comes."""
        assert self._task is not None, "it was opened"
        samples = b",".join(list(self._history)[:-1])
        head = b'{"interval_s":' + _encode(self._interval_s) + b',"samples":['
        yield _frame(b"history", head + samples + b"]}")
        number = 0
        while True:
            told = self._told
            if told is not None and told.number != number:
                number = told.number
                yield told.frame
            elif self._task.done():
                self._task.result()
                return
            else:
                await self._news.wait()

    async def _run(self) -> None:
        """Tell until the server ends, and then once more."""
        due = time.monotonic()
        while not self._is_draining:
            self._tell()
            due = max(due + self._interval_s, time.monotonic())
            await self._wait_until(due)
        self._tell()

    @property
    def _is_draining(self) -> bool:
        return self._served.engine.state is EngineState.DRAINING

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _wait_until(self, due: float) -> None:
        while (left := due - time.monotonic()) > 0.0 and not self._is_draining:
            await asyncio.sleep(min(left, _LOOK_S))

    def _tell(self) -> None:
        now = read(self._served.metrics.collect())
        last = Span(self._minute[-1] if self._minute else now, now)
        while len(self._minute) > 1 and now.moment - self._minute[1].moment >= _MINUTE_S:
            self._minute.popleft()
        minute = Span(self._minute[0] if self._minute else now, now)
        self._minute.append(now)
        statistics = summarise(
            self._served,
            last,
            minute,
            interval_s=self._interval_s,
            price_per_hour=self._price_per_hour,
        )
        number = 1 if self._told is None else self._told.number + 1
        self._told = Told(number, _frame(b"statistics", _encode(statistics)))
        self._history.append(_encode(_without_totals(statistics)))
        self._wake()


class Channels:
    """The channels that somebody listens to, by interval.

    Args:
        open_channel: makes one.
    """

    def __init__(self, open_channel: Callable[[float], Channel]) -> None:
        self._open_channel = open_channel
        self._channels: dict[float, Channel] = {}

    @property
    def intervals(self) -> list[float]:
        """Those at which something is read."""
        return sorted(self._channels)

    async def listen(self, interval_s: float, num_events: int | None) -> AsyncIterator[bytes]:
        """Give the events of an interval, the history first.

        Args:
            interval_s: seconds from one to the next.
            num_events: after so many without the history it ends; None = it does not.
        """
        channel = self._channels.get(interval_s)
        if channel is None:
            channel = self._channels[interval_s] = self._open_channel(interval_s)
            channel.open()
        channel.num_listeners += 1
        num_told = -1
        try:
            async with aclosing(channel.frames()) as frames:
                async for frame in frames:
                    yield frame
                    num_told += 1
                    if num_told == num_events:
                        return
        finally:
            channel.num_listeners -= 1
            if not channel.num_listeners:
                channel.close()
                del self._channels[interval_s]


def _frame(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


def _without_totals(statistics: Statistics) -> dict[str, object]:
    return {name: value for name, value in statistics.items() if name != "totals"}
