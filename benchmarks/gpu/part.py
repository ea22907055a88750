"""What a part of the GPU benchmarks is, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.workshop import Workshop

OK, FAILED, RUNNING, SKIPPED = "ok", "failed", "running", "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number, and the bar that it should reach.

    Attributes:
        name: what was measured.
        value: the number.
        unit: of the value; empty for ratios.
        bar: what it should be at least; None where there is no bar.
        spread: lowest and highest of the repetitions, where there were some.
    """

    name: str
    value: float
    unit: str = ""
    bar: float | None = None
    spread: tuple[float, float] | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is reached; None where there is no bar."""
        return None if self.bar is None else self.value >= self.bar


@dataclass(slots=True)
class Notes:
    """What a part found so far; kept also when it fails later.

    Attributes:
        quantities: for the table.
        details: rows of numbers for the results file alone, by what they are of.
    """

    quantities: list[Quantity] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        bar: float | None = None,
        spread: tuple[float, float] | None = None,
    ) -> None:
        """Note a quantity."""
        self.quantities.append(Quantity(name=name, value=value, unit=unit, bar=bar, spread=spread))

    def detail(self, name: str, /, **values: Any) -> None:
        """Note one row of numbers."""
        self.details.setdefault(name, []).append(values)


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        name: what `--only` calls it; a word before a dot names all of its kind.
        seconds: what it is expected to take on an H200; it is not begun with less time left.
        run: measures.
    """

    name: str
    seconds: float
    run: Callable[[Workshop, Notes], None]


@dataclass(slots=True)
class Outcome:
    """What became of a part.

    Attributes:
        name: of the part.
        status: `ok`, `failed`, `running` or `skipped`.
        seconds: that it took.
        notes: what it found.
        error: the traceback, where it failed; why, where it was skipped.
    """

    name: str
    status: str
    seconds: float = 0.0
    notes: Notes = field(default_factory=Notes)
    error: str | None = None
