"""How an engine that crashes or hangs is treated: settings, counts, and when it starts anew.

It knows numbers and times; it refuses to know of processes.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.config import option
from engine.errors import ConfigError

_FIRST_DELAY_S = 0.25
# Starting takes about as long; what bounds a crash loop is the count.
_LONGEST_DELAY_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionConfig:
    """When the engine's process is ended, and how often it is started anew."""

    engine_restarts: int = option(
        10, "crashes within the window after which the engine is started anew; 0 = never"
    )
    engine_restart_window_s: float = option(
        600.0, "seconds for which a restart counts against engine_restarts"
    )
    watchdog_s: float = option(
        300.0,
        "seconds that one step may take before the engine counts as hung, is ended and started "
        "anew; 0 = any time",
    )
    watchdog_start_s: float = option(
        3600.0,
        "the same while the engine loads, and for its first steps, which may compile; 0 = any time",
    )

    def __post_init__(self) -> None:
        if self.engine_restarts < 0:
            raise ConfigError(f"engine_restarts: {self.engine_restarts} is below 0.")
        if self.engine_restart_window_s <= 0.0:
            raise ConfigError(
                f"engine_restart_window_s: {self.engine_restart_window_s} must exceed 0."
            )
        for name in ("watchdog_s", "watchdog_start_s"):
            value = getattr(self, name)
            if value < 0.0 or 0.0 < value < 1.0:
                raise ConfigError(f"{name}: {value} is neither 0 nor 1 at least.")


class EngineState(enum.StrEnum):
    """Whether requests are welcome, and if not, why."""

    OK = "ok"
    LOADING = "loading"
    RESTARTING = "restarting"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(slots=True)
class FaultCounts:
    """What went wrong since the client was made; counters only ever grow.

    Attributes:
        num_restarts: times that the engine's process was started anew.
        num_watchdog_kills: times that it was ended because nothing moved.
        num_requests_refused: requests refused because they had crashed it.
    """

    num_restarts: int = 0
    num_watchdog_kills: int = 0
    num_requests_refused: int = 0


class RestartPolicy:
    """Says how long to wait before the next start: ever longer, and in the end for ever.

    Args:
        config: how often is often enough.
        clock: seconds, monotonic.
    """

    def __init__(
        self, config: SupervisionConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = config.engine_restarts
        self._window_s = config.engine_restart_window_s
        self._clock = clock
        self._restarts: deque[float] = deque()

    def next_delay_s(self) -> float | None:
        """Count a restart and give the seconds to wait for it; None where there were enough."""
        now = self._clock()
        while self._restarts and now - self._restarts[0] > self._window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._limit:
            return None
        delay = min(_FIRST_DELAY_S * 2.0 ** len(self._restarts), _LONGEST_DELAY_S)
        self._restarts.append(now)
        return delay
