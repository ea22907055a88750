"""Draws what was measured as one table: quantity, value, bar, and whether it is met."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.gpu.part import OK, Outcome, Quantity

_VERDICTS = {True: "met", False: "missed", None: ""}


def verdict_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Give a row for each quantity, and one for each part that failed or was skipped."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("bar", justify="right")
    table.add_column("verdict")
    for outcome in outcomes:
        for quantity in outcome.notes.quantities:
            bar = "" if quantity.bar is None else f">= {quantity.bar:g}"
            table.add_row(
                outcome.name, quantity.name, _value(quantity), bar, _VERDICTS[quantity.is_met]
            )
        if outcome.status != OK:
            reason = (outcome.error or "it never ended").strip().splitlines()[-1]
            table.add_row(outcome.name, reason[:100], "", "", outcome.status)
    return table


def _value(quantity: Quantity) -> str:
    text = f"{_number(quantity.value)} {quantity.unit}".rstrip()
    if quantity.spread is None:
        return text
    low, high = quantity.spread
    return f"{text} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"
