"""Draws measurements as tables; of a sweep, a pair for each workload, temperature and drafter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from rich.table import Table

from benchmarks.sweep import Measurement

Cell = Callable[[Measurement], str]


def tables_of(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """Give speed-ups, then what they are made of, over the load."""
    for (workload, temperature, drafter), group in groupby(measurements, key=_where):
        lanes = list(group)
        where = f"{workload}, T={temperature:g}, {drafter}"
        speed = f"{where}: speed over off (range), tokens/s of off"
        yield _table(speed, lanes, _speed)
        inside = f"{where}: tau | S/tau | accepted"
        yield _table(inside, [m for m in lanes if m.draft_tokens != 0], _inside, with_equal=True)


class AtLoad(Protocol):
    """What was measured at one temperature and load."""

    @property
    def temperature(self) -> float:
        """Of all requests."""
        ...

    @property
    def concurrency(self) -> int:
        """Requests in flight."""
        ...


Row = TypeVar("Row", bound=AtLoad)


def table_by_load(
    title: str, rows: Sequence[Row], cells: Mapping[str, Callable[[Row], str]]
) -> Table:
    """Give a table with a column for each temperature and load, and a line for each quantity."""
    table = Table(title=title, title_justify="left")
    table.add_column("T, requests at once")
    for row in rows:
        table.add_column(f"{row.temperature:g}, {row.concurrency}", justify="right")
    for name, cell in cells.items():
        table.add_row(name, *map(cell, rows))
    return table


def _where(m: Measurement) -> tuple[str, float, str]:
    return m.workload, m.temperature, m.drafter


def _table(
    title: str, measurements: Sequence[Measurement], cell: Cell, *, with_equal: bool = False
) -> Table:
    loads = sorted({m.concurrency for m in measurements})
    table = Table(title=title, title_justify="left")
    table.add_column("k")
    for load in loads:
        table.add_column(f"{load} at once", justify="right")
    if with_equal:
        table.add_column("equal to off", justify="right")
    for name in dict.fromkeys(m.lane for m in measurements):
        row = {m.concurrency: m for m in measurements if m.lane == name}
        cells = [cell(row[load]) for load in loads]
        table.add_row(name, *cells, *([_equal(list(row.values()))] if with_equal else []))
    return table


def _speed(m: Measurement) -> str:
    if m.draft_tokens == 0:
        return f"{m.num_tokens / m.seconds:.1f}/s"
    low, high = m.speed_up_spread
    return f"{m.speed_up:.2f}x\n{low:.2f}-{high:.2f}"


def _inside(m: Measurement) -> str:
    return f"{m.tokens_per_target_pass:.2f} | {m.efficiency:.2f}\n{m.acceptance_rate:.0%}"


def _equal(lane: Sequence[Measurement]) -> str:
    return (
        f"{sum(m.num_equal_answers for m in lane)} of {sum(m.num_compared_answers for m in lane)}"
    )
