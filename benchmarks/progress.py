"""Shows how far a benchmark is, point by point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OnProgress = Callable[[str, float], None]
"""Is told the point being measured, and how many points are done, fractions included."""


@contextmanager
def show_progress(total: int) -> Iterator[OnProgress]:
    """Show a bar on stderr while points are measured."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f} of {task.total} points"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Drawing takes time from what is measured, though from all lanes alike.
    with Progress(*columns, console=console, refresh_per_second=1, transient=True) as bar:
        task = bar.add_task("measuring", total=total)

        def on_progress(point: str, done: float) -> None:
            bar.update(task, description=point, completed=done)

        yield on_progress
