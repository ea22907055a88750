"""Cores that crash, hang or do not load, on purpose and when a test says so."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.request import RequestDelta
from tests.doubles import SlowCore

# What a prompt begins with that the core cannot bear.
POISON = 13
HANG = 14
# Steps of a process before it can be harmed, so that the first ones are behind it.
NUM_GOOD_STEPS = 20


class TouchyCore(SlowCore):
    """Dies at prompts that begin with `POISON`, and hangs at those that begin with `HANG`."""

    num_steps = 0

    def step(self) -> list[RequestDelta]:
        self.num_steps += 1
        first = {request.prompt_token_ids[0] for request in self._requests.values()}
        deltas = super().step()
        if POISON in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in first and self.num_steps > NUM_GOOD_STEPS:
            time.sleep(3600)
        return deltas


class OnceCore(SlowCore):
    """Loads once; the file that its model is called shows that it did."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        assert config.model.model is not None, "the test names a file"
        mark = Path(config.model.model)
        if mark.exists():
            raise ModelLoadError("The memory is still taken.")
        mark.touch()


class SleepyCore(SlowCore):
    """Never finishes loading."""

    def __init__(self, config: EngineConfig) -> None:
        time.sleep(3600)


class BrittleCore(SlowCore):
    """Cannot take requests with an odd priority, and did not foresee them."""

    def add_request(self, request) -> None:  # type: ignore[no-untyped-def]
        if request.priority % 2:
            raise KeyError(request.request_id)
        super().add_request(request)
