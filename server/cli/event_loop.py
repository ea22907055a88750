"""What processes with an engine beside them have in common: their loop, and doing without torch."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any


def do_without_torch() -> None:
    """Let transformers' tokenizers load as where torch is not installed.

    They need nothing of it, and it would take seconds and 180 MiB of a process that computes
    nothing. Code that comes with a model may need it.
    """
    # What Python itself says of a module that is None is that it cannot be found.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
