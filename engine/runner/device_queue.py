"""Hands work to a device in order, without waiting for it, and tells when it is done.

On a GPU work runs while the host goes on; on a CPU it runs at once. Whoever submits work may touch
neither its inputs nor its outputs until a mark behind it has passed, except what `stage` copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch


class Mark(Protocol):
    """A place in a queue."""

    def wait(self) -> None:
        """Wait until the device has passed it."""
        ...

    def seconds_since(self, earlier: Mark) -> float:
        """Give the device's time between two marks of one queue, both passed."""
        ...


class DeviceQueue(Protocol):
    """Where work is handed to a device."""

    def submit(self, work: Callable[[], object]) -> None:
        """Let the device do something after all that was submitted before."""
        ...

    def stage(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to where submitted work may read it; the array can be used again."""
        ...

    def fetch(self, source: torch.Tensor) -> torch.Tensor:
        """Submit a copy to the host; what is returned is filled once a later mark has passed."""
        ...

    def mark(self) -> Mark:
        """Mark the place behind all that was submitted."""
        ...


def queue_for(device: torch.device) -> DeviceQueue:
    """Give the queue of a device."""
    return CudaQueue() if device.type == "cuda" else ImmediateQueue()


class ImmediateQueue:
    """The queue of a CPU: work is done when `submit` returns."""

    def submit(self, work: Callable[[], object]) -> None:
        """Do it; see `DeviceQueue`."""
        work()

    def stage(self, array: np.ndarray) -> torch.Tensor:
        """Copy; see `DeviceQueue`."""
        return torch.from_numpy(array.copy())

    def fetch(self, source: torch.Tensor) -> torch.Tensor:
        """Copy; see `DeviceQueue`."""
        return source.clone()

    def mark(self) -> Mark:
        """Take the time; see `DeviceQueue`."""
        return _Moment()


class _Moment:
    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Moment), "marks of one queue are compared"
        return self._seconds - earlier._seconds


class CudaQueue:
    """The current CUDA stream; host memory is pinned, so that copies do not wait either."""

    def submit(self, work: Callable[[], object]) -> None:
        """Launch it; see `DeviceQueue`."""
        work()

    def stage(self, array: np.ndarray) -> torch.Tensor:
        """Copy to pinned memory, which torch keeps until the device has read it."""
        return torch.from_numpy(array).pin_memory()

    def fetch(self, source: torch.Tensor) -> torch.Tensor:
        """Launch a copy to pinned memory; see `DeviceQueue`."""
        host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        host.copy_(source, non_blocking=True)
        return host

    def mark(self) -> Mark:
        """Record an event; see `DeviceQueue`."""
        return _Event()


class _Event:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Event), "marks of one queue are compared"
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1e3
