"""Notices that an engine does not move: no step while it works, no sign of life while it rests.

It hears of messages and of time, and says for how long nothing came; who is ended for it, others
decide. Time in which this process itself did not run is not held against the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.client.supervision import SupervisionConfig

TICK_S = 0.25
# An engine without work says so every second (`engine.client.engine_process`).
_IDLE_LIMIT_S = 30.0
_LEAST_IDLE_LIMIT_S = 4.0
# Kernels are compiled and passes recorded in the first ones.
_NUM_FIRST_STEPS = 16


class Watchdog:
    """Watches one engine process, from its start.

    Args:
        config: the limits.
        clock: seconds, monotonic.
    """

    def __init__(
        self, config: SupervisionConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._clock = clock
        self._last_tick = clock()
        self._quiet_s = 0.0
        self._num_steps = 0
        self._is_idle = False

    def hear_step(self) -> None:
        """Note that a step is done."""
        self._num_steps += 1
        self._hear(is_idle=False)

    def hear_life(self, *, is_idle: bool) -> None:
        """Note that the engine said something else.

        Args:
            is_idle: whether it said so with nothing to do and nothing on its way to it.
        """
        self._hear(is_idle=is_idle)

    def note_work(self) -> None:
        """Note that work is on its way to the engine; its time begins now."""
        if self._is_idle:
            self._hear(is_idle=False)

    def overdue_s(self) -> float | None:
        """Look at the clock, at least every few ticks; gives how long nothing came, if too long."""
        now = self._clock()
        # Longer pauses are our own: the machine slept, or this process did.
        self._quiet_s += min(now - self._last_tick, 4 * TICK_S)
        self._last_tick = now
        limit = self._limit_s
        return self._quiet_s if 0.0 < limit < self._quiet_s else None

    @property
    def _limit_s(self) -> float:
        config = self._config
        if self._is_idle and config.watchdog_s > 0.0:
            return max(_LEAST_IDLE_LIMIT_S, min(config.watchdog_s, _IDLE_LIMIT_S))
        is_new = self._num_steps < _NUM_FIRST_STEPS
        return config.watchdog_start_s if is_new else config.watchdog_s

    def _hear(self, *, is_idle: bool) -> None:
        self._quiet_s = 0.0
        self._is_idle = is_idle
