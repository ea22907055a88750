"""The line that says what the parts of a start took."""

from __future__ import annotations

import pytest

from engine import startup_clock
from engine.startup_clock import StartupClock


def test_parts_are_told_in_order_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.5, 11.75])
    monkeypatch.setattr(startup_clock.time, "perf_counter", lambda: next(times))
    clock = StartupClock()
    clock.lap("models")
    clock.lap("kv_cache")
    assert str(clock) == "models_s=1.50 kv_cache_s=0.25"
