"""What measuring costs the one who measures: CPU time, and how late its event loop comes around."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.rounds import Numbers, percentile

_TICK_S = 0.01
_MS, _US = 1e3, 1e6


@dataclass(slots=True)
class ClientCost:
    """What a stretch of measuring took of this process.

    Attributes:
        wall_s: its length.
        cpu_s: CPU time of all threads.
        lags_s: by how much each wait of the event loop was too long.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    lags_s: list[float] = field(default_factory=list)

    def numbers(self, num_events: int) -> Numbers:
        """Give the quantities of a run that received so many events."""
        lags = {f"loop_lag_ms_p{p}": percentile(self.lags_s, p) for p in (50, 99, 100)}
        return {
            "client_cpu_share": self.cpu_s / self.wall_s if self.wall_s else None,
            "client_cpu_us_per_event": self.cpu_s / num_events * _US if num_events else None,
            **{name: None if lag is None else lag * _MS for name, lag in lags.items()},
        }


@asynccontextmanager
async def metered() -> AsyncIterator[ClientCost]:
    """Meter this process while the block runs; garbage is collected before it, not in it."""
    cost = ClientCost()
    gc.collect()
    gc.disable()
    ticking = asyncio.create_task(_tick(cost.lags_s))
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.wall_s, cost.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        ticking.cancel()
        gc.enable()


async def _tick(lags_s: list[float]) -> None:
    while True:
        due = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        lags_s.append(max(0.0, time.perf_counter() - due))
