"""What a comparison found: the best way of each peer, ratios of ours over it, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from benchmarks.peers.comparison import Measured
from benchmarks.peers.ways import OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ours over a peer at one point, both in their best way.

    Attributes:
        dtype: of weights.
        concurrency: requests in flight.
        may_speculate: whether the best way was sought among those that draft, too.
        peer: whose.
        own_way: ours.
        way: the peer's.
        ratio: of tokens per second, the median over repeats.
        spread: of the same, lowest and highest.
    """

    dtype: str
    concurrency: int
    may_speculate: bool
    peer: str
    own_way: str
    way: str
    ratio: float
    spread: tuple[float, float]


def best_way(points: Sequence[Measured], peer: str, *, may_speculate: bool) -> Measured | None:
    """Give a peer's fastest way by its median; None where none was measured.

    Args:
        points: of one dtype and load.
        peer: whose.
        may_speculate: of all its ways, or of those that draft nothing.
    """
    own = [p for p in points if p.way.peer == peer and p.way.speculates <= may_speculate]
    return max(own, key=lambda point: point.rate, default=None)


def ratios(measured: Sequence[Measured]) -> list[Ratio]:
    """Give ours over every peer, at each point that both have.

    First without drafts; then, where any were measured, each in its best way of all.
    """
    found = []
    for dtype, concurrency in _places(measured):
        points = _at(measured, dtype, concurrency)
        peers = dict.fromkeys(point.way.peer for point in points if point.way.peer != OURS)
        for may_speculate in sorted({False, *(point.way.speculates for point in points)}):
            own = best_way(points, OURS, may_speculate=may_speculate)
            for peer in peers:
                other = best_way(points, peer, may_speculate=may_speculate)
                if own is not None and other is not None:
                    found.append(_ratio(own, other, may_speculate))
    return found


def tables(measured: Sequence[Measured]) -> Iterator[Table]:
    """Give tokens per second of every way, and ours over every peer's best."""
    found = ratios(measured)
    for dtype in dict.fromkeys(point.dtype for point in measured):
        yield _speeds([point for point in measured if point.dtype == dtype], dtype)
        for may_speculate in (False, True):
            rows = [r for r in found if (r.dtype, r.may_speculate) == (dtype, may_speculate)]
            if rows:
                yield _table_of(rows, dtype, may_speculate)


def _ratio(own: Measured, other: Measured, may_speculate: bool) -> Ratio:
    by_repeat = [a / b for a, b in zip(own.rates, other.rates, strict=True)]
    return Ratio(
        dtype=own.dtype,
        concurrency=own.concurrency,
        may_speculate=may_speculate,
        peer=other.way.peer,
        own_way=own.way.name,
        way=other.way.name,
        ratio=median(by_repeat),
        spread=(min(by_repeat), max(by_repeat)),
    )


def _places(measured: Sequence[Measured]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((point.dtype, point.concurrency) for point in measured))


def _at(measured: Sequence[Measured], dtype: str, concurrency: int) -> list[Measured]:
    return [p for p in measured if (p.dtype, p.concurrency) == (dtype, concurrency)]


def _speeds(points: Sequence[Measured], dtype: str) -> Table:
    loads = list(dict.fromkeys(point.concurrency for point in points))
    table = _with_loads(f"{dtype}: tokens/s (range), answers equal to ours", loads)
    for way in dict.fromkeys(point.way for point in points):
        row = {point.concurrency: point for point in points if point.way == way}
        table.add_row(way.label, *(_speed(row[c]) if c in row else "failed" for c in loads))
    return table


def _speed(point: Measured) -> str:
    text = f"{point.rate:.1f}\n{min(point.rates):.1f}-{max(point.rates):.1f}"
    if point.agreement is None:
        return text
    return f"{text}\n{point.agreement.num_equal}/{point.agreement.num_answers}"


def _table_of(rows: Sequence[Ratio], dtype: str, may_speculate: bool) -> Table:
    loads = list(dict.fromkeys(row.concurrency for row in rows))
    how = "each in its best way" if may_speculate else "no speculation"
    table = _with_loads(f"{dtype}, {how}: ours over (range)", loads)
    for peer in dict.fromkeys(row.peer for row in rows):
        cells = {row.concurrency: _cell(row) for row in rows if row.peer == peer}
        table.add_row(peer, *(cells.get(load, "-") for load in loads))
    return table


def _cell(row: Ratio) -> str:
    low, high = row.spread
    return f"{row.ratio:.2f}x\n{low:.2f}-{high:.2f}\n{row.own_way} / {row.way}"


def _with_loads(title: str, loads: Sequence[int]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for load in loads:
        table.add_column(f"{load} at once", justify="right")
    return table
