"""Reads what torch's profiler saw of a device: how long it worked, with what, and what it awaited.

Chrome traces are read rather than the profiler's objects, whose fields differ between versions.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile, supported_activities

_DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}


class Work(NamedTuple):
    """Something that the device did.

    Attributes:
        start_us: when it began, in microseconds.
        end_us: when it ended.
        name: of the kernel or copy.
    """

    start_us: float
    end_us: float
    name: str


@dataclass(frozen=True, slots=True)
class Trace:
    """What the device did, in order of beginning."""

    work: Sequence[Work]

    @property
    def busy_us(self) -> float:
        """Microseconds in which at least one kernel or copy ran."""
        return self.span_us - sum(length for length, _ in self._gaps())

    @property
    def span_us(self) -> float:
        """Microseconds from the first beginning to the last end."""
        return max(w.end_us for w in self.work) - self.work[0].start_us if self.work else 0.0

    def kernels(self, count: int) -> list[tuple[str, float, int]]:
        """Give the names that took longest, with their microseconds and calls."""
        total: dict[str, float] = {}
        for work in self.work:
            total[work.name] = total.get(work.name, 0.0) + work.end_us - work.start_us
        calls = Counter(work.name for work in self.work)
        names = sorted(total, key=lambda name: total[name], reverse=True)
        return [(name, total[name], calls[name]) for name in names[:count]]

    def gaps(self, count: int) -> list[tuple[float, str]]:
        """Give the longest times in which nothing ran, and what ended them."""
        return sorted(self._gaps(), reverse=True)[:count]

    def _gaps(self) -> list[tuple[float, str]]:
        gaps, free_from = [], self.work[0].start_us if self.work else 0.0
        for work in self.work:
            if work.start_us > free_from:
                gaps.append((work.start_us - free_from, work.name))
            free_from = max(free_from, work.end_us)
        return gaps


def record(run: Callable[[], None], path: Path, *, with_host: bool = False) -> Trace:
    """Profile a function, and write its trace.

    Args:
        run: what is profiled; ends when the device has ended.
        path: where the trace goes; the ending `.gz` compresses it.
        with_host: whether to record what the host does, too, which slows it.
    """
    activities = {ProfilerActivity.CUDA} & supported_activities()
    if with_host or not activities:
        activities |= {ProfilerActivity.CPU}
    with profile(activities=activities) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    return read(path)


def read(path: Path) -> Trace:
    """Read what the device did from a Chrome trace."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    work = [
        Work(float(event["ts"]), float(event["ts"]) + float(event["dur"]), str(event["name"]))
        for event in json.loads(raw)["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in _DEVICE_WORK
    ]
    return Trace(sorted(work))
