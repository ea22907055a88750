"""Runs the same work over the same buffers again and again, as a CUDA graph where there are any.

A body is known by its key. It reads and writes buffers that stay where they are and nothing else
that changes from call to call, so launching all of its kernels can be recorded once and repeated
with one call. Knows no models; what a key stands for is the caller's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

logger = logging.getLogger(__name__)

Body = Callable[[], object]


class Graphs(Protocol):
    """How bodies are run.

    Attributes:
        num_graphs: bodies recorded so far.
        num_bytes: device memory that they hold.
    """

    num_graphs: int
    num_bytes: int

    def run(self, key: Hashable, body: Body) -> None:
        """Run the body of a key; the same key means the same body."""
        ...

    def record(self, key: Hashable, body: Body) -> None:
        """Run a body once and record it, ahead of its first use."""
        ...


class NoGraphs:
    """Runs every body as it is."""

    def __init__(self) -> None:
        self.num_graphs = 0
        self.num_bytes = 0

    def run(self, key: Hashable, body: Body) -> None:
        """Run it; see `Graphs`."""
        body()

    def record(self, key: Hashable, body: Body) -> None:
        """Run it; see `Graphs`."""
        body()


class CudaGraphs:
    """Records a body when its key comes for the second time, and replays it from then on.

    The first time compiles what has to be compiled, which a recording must not. All graphs share
    one memory pool: they run one after the other and leave nothing behind but what they write into
    buffers of their caller's.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.num_graphs = 0
        self.num_bytes = 0
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._is_warm: set[Hashable] = set()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def run(self, key: Hashable, body: Body) -> None:
        """Replay the body, record it, or run it for the first time; see `Graphs`."""
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        elif key in self._is_warm:
            self._capture(key, body).replay()
        else:
            body()
            self._is_warm.add(key)

    def record(self, key: Hashable, body: Body) -> None:
        """Run the body, then record it; see `Graphs`."""
        if key not in self._graphs:
            body()
            self._capture(key, body)

    def _capture(self, key: Hashable, body: Body) -> torch.cuda.CUDAGraph:
        started = time.perf_counter()
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                body()
            finally:
                graph.capture_end()
        torch.cuda.synchronize(self._device)
        self._graphs[key] = graph
        self.num_graphs += 1
        self.num_bytes += torch.cuda.memory_reserved(self._device) - before
        seconds = time.perf_counter() - started
        logger.debug("graph key=%s seconds=%.3f graphs=%d", key, seconds, self.num_graphs)
        return graph
