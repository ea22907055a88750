"""Makes the core of an engine that has its process for itself, and imports only what it needs."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from threading import Thread
from typing import Any

import torch

from engine.config import ON, EngineConfig
from engine.log_format import adopt_loggers
from engine.model.lean_imports import lean_imports
from engine.startup_clock import StartupClock
from engine.uncollected import uncollected
from kernels.native_library import compile_all

logger = logging.getLogger(__name__)


def make_core(config: EngineConfig) -> Any:
    """Import and make an `EngineCore`.

    Raises:
        OutdraftError: see there.
    """
    clock = StartupClock()
    is_on_cpu = config.model.device == "cpu" or not torch.cuda.is_available()
    if is_on_cpu:
        # The C compiler is a process of its own, which need not be waited for yet.
        Thread(target=compile_all, name="native-compiler", daemon=True).start()
    is_lean = is_on_cpu and config.model.compile != ON
    with uncollected(), lean_imports() if is_lean else nullcontext():
        # Imported here because it depends on the settings how.
        from engine.core import EngineCore
    adopt_loggers()
    clock.lap("import")
    logger.info("core_imported %s", clock)
    return EngineCore(config)
