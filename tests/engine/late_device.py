"""A device that does its work late, and graphs that repeat exactly what was recorded."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

import numpy as np
import torch

from engine.runner.graphs import Body


class LateQueue:
    """Does what it is handed when somebody waits for it, or now and then by itself.

    What is fetched holds garbage until then, as memory does that a device has not written yet.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._pending: list[Callable[[], object]] = []
        self._num_submitted = 0
        self.most_pending = 0

    def submit(self, work: Callable[[], object]) -> None:
        self._pending.append(work)
        self._num_submitted += 1
        self.most_pending = max(self.most_pending, len(self._pending))
        if self._rng.random() < 0.1:
            self._catch_up(self._num_submitted - self._rng.randrange(len(self._pending)))

    def stage(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.copy())

    def fetch(self, source: torch.Tensor) -> torch.Tensor:
        host = torch.full(source.shape, -7, dtype=source.dtype)
        self.submit(lambda: host.copy_(source))
        return host

    def mark(self) -> LateMark:
        return LateMark(self, self._num_submitted)

    def _catch_up(self, count: int) -> None:
        while self._num_submitted - len(self._pending) < count:
            self._pending.pop(0)()


class LateMark:
    """A place in a late queue."""

    def __init__(self, queue: LateQueue, count: int) -> None:
        self._queue = queue
        self._count = count

    def wait(self) -> None:
        self._queue._catch_up(self._count)

    def seconds_since(self, earlier: LateMark) -> float:
        return 1e-4 * (self._count - earlier._count)


class RecordedGraphs:
    """Keeps the first body of every key and repeats that one, whatever comes with the key later.

    A body that reads anything but buffers that stay in place would repeat what is long past.
    """

    def __init__(self) -> None:
        self._bodies: dict[Hashable, Body] = {}
        self.num_graphs = 0
        self.num_bytes = 0
        self.num_replays = 0

    def run(self, key: Hashable, body: Body) -> None:
        self.num_replays += key in self._bodies
        self.record(key, body)
        self._bodies[key]()

    def record(self, key: Hashable, body: Body) -> None:
        if key not in self._bodies:
            self._bodies[key] = body
            self.num_graphs += 1
