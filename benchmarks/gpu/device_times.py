"""Times work on a device: a captured graph over buffers that rotate, the median of many replays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# Replays last at least so long together, so that the clocks of the device have risen.
_MIN_S = 0.02
_MAX_COPIES = 64
_CPU_L2_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Times:
    """What one call took.

    Attributes:
        seconds: the median.
        low: the fastest.
        high: the slowest.
    """

    seconds: float
    low: float
    high: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_copies(num_bytes: int, device: torch.device) -> int:
    """Give how many sets of buffers of so many bytes do not fit into the cache, by far.

    Small buffers stay in the cache, as they do in a model's pass: there are 64 sets at most.
    """
    cache = _CPU_L2_BYTES
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(_MAX_COPIES, -(-3 * cache // max(1, num_bytes))))


def time_calls(calls: Sequence[Call], device: torch.device, *, repeats: int) -> Times:
    """Time calls that do the same to buffers of their own.

    On CUDA they are captured into one graph, one behind the other.

    Args:
        calls: at least one; none may wait for the device.
        device: where they work.
        repeats: of all calls.

    Returns:
        What one call took.
    """
    if device.type != "cuda":
        for call in calls:
            call()
        return _times([_wall(calls) for _ in range(repeats)], len(calls))
    graph = _capture(calls, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    warm_until = time.perf_counter() + _MIN_S
    while time.perf_counter() < warm_until:
        graph.replay()
        torch.cuda.synchronize(device)
    seconds = []
    for _ in range(repeats):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return _times(seconds, len(calls))


def _capture(calls: Sequence[Call], device: torch.device) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for call in [*calls, calls[0]]:
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _wall(calls: Sequence[Call]) -> float:
    started = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - started


def _times(seconds: Sequence[float], num_calls: int) -> Times:
    own = [value / num_calls for value in seconds]
    return Times(statistics.median(own), min(own), max(own))
