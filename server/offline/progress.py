"""How far a run has come, how fast, and what it costs; counts alone, nothing is printed here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.request import SpeculationStats
from server.offline.outcome import Outcome

_SECONDS_PER_HOUR = 3600.0
_MILLION = 1e6


@dataclass(slots=True)
class EngineCount:
    """What an engine has computed, also over restarts, after which it counts from nothing.

    Attributes:
        read: gives the engine's counts.
        num_tokens: that it generated.
        num_passes: of the target, in which it did so.
    """

    read: Callable[[], SpeculationStats]
    num_tokens: int = 0
    num_passes: int = 0
    _last_tokens: int = 0
    _last_passes: int = 0

    def sample(self) -> None:
        """Read the counts."""
        stats = self.read()
        if stats.num_target_passes < self._last_passes:
            self._last_tokens = self._last_passes = 0
        self.num_tokens += stats.num_output_tokens - self._last_tokens
        self.num_passes += stats.num_target_passes - self._last_passes
        self._last_tokens, self._last_passes = stats.num_output_tokens, stats.num_target_passes

    @property
    def tokens_per_pass(self) -> float | None:
        """How many tokens a pass of the target gave; None = there was none."""
        return self.num_tokens / self.num_passes if self.num_passes else None


@dataclass(slots=True)
class Progress:
    """Counts of one run.

    Attributes:
        engine: what the engine has computed.
        price_per_hour: of the machine; None = nobody asked.
        total: records of the source; None = nobody knows.
        num_skipped: records that an earlier run had finished.
        num_done: records that this one has.
        num_prompt_tokens: of these.
        num_tokens: of their answers.
        errors: how many of them failed, by code.
        num_passing: of these, those that may be answered another time.
        begun: when the command began, in seconds of the monotonic clock; it costs from then on.
        ready: when the first record could be asked; None = not yet.
    """

    engine: EngineCount
    price_per_hour: float | None = None
    total: int | None = None
    num_skipped: int = 0
    num_done: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    num_passing: int = 0
    begun: float = field(default_factory=time.monotonic)
    ready: float | None = None

    def start(self) -> None:
        """Note that records can be asked from now on."""
        self.ready = time.monotonic()

    def skip(self, count: int) -> None:
        """Count records that were done before."""
        self.num_skipped += count

    def note(self, outcome: Outcome) -> None:
        """Count a record whose row is written."""
        self.num_done += 1
        self.num_prompt_tokens += outcome.num_prompt_tokens
        self.num_tokens += outcome.num_tokens
        self.num_passing += outcome.is_passing
        if outcome.error is not None:
            self.errors[outcome.error] += 1

    @property
    def num_failed(self) -> int:
        """Records of this run that failed."""
        return self.errors.total()

    @property
    def seconds(self) -> float:
        """How long records have been asked."""
        return 0.0 if self.ready is None else time.monotonic() - self.ready

    @property
    def tokens_per_second(self) -> float:
        """How many tokens the engine gives, those of unfinished answers included."""
        return self.engine.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest may take; None = nobody knows."""
        if self.total is None or self.num_done == 0:
            return None
        rest = max(0, self.total - self.num_skipped - self.num_done)
        return rest * self.seconds / self.num_done

    @property
    def cost(self) -> float | None:
        """What the machine has cost since the command began; None = nobody asked."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * (time.monotonic() - self.begun) / _SECONDS_PER_HOUR

    @property
    def cost_per_million(self) -> float | None:
        """What a million answer tokens cost so; None = nobody asked, or there are none."""
        if self.cost is None or self.num_tokens == 0:
            return None
        return self.cost / self.num_tokens * _MILLION

    def figures(self) -> dict[str, str]:
        """Give what is worth telling now, by name."""
        self.engine.sample()
        total = "" if self.total is None else f"/{self.total}"
        left, passes = self.seconds_left, self.engine.tokens_per_pass
        told = {
            "done": f"{self.num_skipped + self.num_done}{total}",
            "failed": str(self.num_failed) if self.num_failed else None,
            "tokens_per_s": f"{self.tokens_per_second:.1f}",
            "tokens_per_pass": None if passes is None else f"{passes:.2f}",
            "left": None if left is None else clock(left),
            "cost": None if self.cost is None else f"{self.cost:.4f}",
        }
        return {name: value for name, value in told.items() if value is not None}


def clock(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
