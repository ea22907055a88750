"""Runs parts one after the other within a budget; one that fails leaves the others alone.

A part can also break the process it runs in: an illegal address makes every later call on the
device fail, and a kernel may never end. Then the process starts anew behind that part.
"""

from __future__ import annotations

import faulthandler
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from benchmarks.gpu.device_times import synchronize
from benchmarks.gpu.part import FAILED, OK, RUNNING, SKIPPED, Outcome, Part
from benchmarks.gpu.run_file import RunFile
from benchmarks.gpu.workshop import Workshop, free_memory

# A part that takes so many times what was expected, and so many seconds more, never ends.
_PATIENCE, _PATIENCE_S = 3.0, 45.0

StartAnew = Callable[[], None]
"""Replaces the process by one that goes on from the results file; does not return."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs parts.

    Attributes:
        workshop: what they share.
        file: where outcomes go; those that it has already are not run again.
        deadline: on the monotonic clock.
        console: told of each part as it ends.
        start_anew: see `StartAnew`.
    """

    workshop: Workshop
    file: RunFile
    deadline: float
    console: Console
    start_anew: StartAnew

    def run(self, parts: Sequence[Part]) -> None:
        """Run all parts that have no outcome yet."""
        done = {outcome.name for outcome in self.file.outcomes}
        for part in parts:
            if part.name not in done:
                self._run_part(part)

    def _run_part(self, part: Part) -> None:
        outcome = Outcome(part.name, RUNNING)
        self.file.outcomes.append(outcome)
        left = self.deadline - time.monotonic()
        if left < part.seconds:
            outcome.status = SKIPPED
            outcome.error = f"needs about {part.seconds:g} s, and {max(0.0, left):.0f} are left"
        else:
            self.file.write()
            self._measure(part, outcome)
        self.file.write()
        self._tell(outcome)
        if outcome.status == FAILED and not self._device_works():
            self.console.print("the device answers no more: starting anew behind this part")
            self.start_anew()

    def _measure(self, part: Part, outcome: Outcome) -> None:
        started = time.monotonic()
        try:
            with self._watched(part, outcome):
                part.run(self.workshop, outcome.notes)
                synchronize(self.workshop.device)
            outcome.status = OK
        except Exception:
            outcome.status, outcome.error = FAILED, traceback.format_exc()
        outcome.seconds = time.monotonic() - started
        if outcome.status == OK or self._device_works():
            free_memory()

    @contextmanager
    def _watched(self, part: Part, outcome: Outcome) -> Iterator[None]:
        """Start anew if the part never ends."""
        limit = _PATIENCE * part.seconds + _PATIENCE_S

        def give_up() -> None:
            faulthandler.dump_traceback(all_threads=True)
            outcome.status, outcome.seconds = FAILED, limit
            outcome.error = f"did not end within {limit:.0f} s"
            self.file.write()
            self.start_anew()

        timer = threading.Timer(limit, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _device_works(self) -> bool:
        try:
            synchronize(self.workshop.device)
        except RuntimeError:
            return False
        return True

    def _tell(self, outcome: Outcome) -> None:
        line = f"{outcome.name}: {outcome.status}, {outcome.seconds:.1f} s"
        if outcome.error is not None:
            line += f" ({outcome.error.strip().splitlines()[-1][:160]})"
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)
