"""A benchmark's results as one page of tables and charts, and how it looks in a terminal.

A page holds texts and numbers that are ready to be shown, and refuses to know what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        title: above it.
        columns: heads; the first column names the rows.
        rows: cells, as many as there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A measured value on a chart, with the lowest and the highest of its rounds."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Values over something.

    Attributes:
        name: of its file, without ending.
        title: above it.
        x_label: of the axis, with the unit.
        y_label: likewise.
        lines: marks from left to right, by the line's label.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[Mark]]


@dataclass(slots=True)
class Page:
    """All that a benchmark shows.

    Attributes:
        title: of the page.
        facts: what was measured on what, by name.
        grids: tables.
        charts: without those that have nothing to show.
        notes: what the reader must know.
    """

    title: str
    facts: dict[str, str]
    grids: list[Grid]
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def show_page(console: Console, page: Page) -> None:
    """Print tables and notes."""
    for grid in page.grids:
        table = Table(title=grid.title, title_justify="left")
        for place, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)
    for note in page.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
