"""Shows how far a run has come: a bar on a terminal, else a line of the log now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from server.offline.progress import Progress, clock

_BAR_WIDTH = 12
_WORDS = {
    "done": "{}",
    "failed": "{} failed",
    "tokens_per_s": "{} tokens/s",
    "tokens_per_pass": "{}/pass",
    "left": "{} left",
    "cost": "cost {}",
}
_BAR_S = 0.25
_LOG_S = 30.0

logger = logging.getLogger(__name__)


async def shown(work: Awaitable[None], progress: Progress, console: Console | None) -> None:
    """Wait for work, and show how far it has come meanwhile; whatever it raises is raised.

    Args:
        work: to be done.
        progress: of it.
        console: a terminal for the bar; None = the log tells.
    """
    if console is not None:
        columns = (BarColumn(_BAR_WIDTH), TextColumn("{task.fields[told]}"))
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("answering", total=progress.total, told="")

            def show() -> None:
                done = progress.num_skipped + progress.num_done
                bar.update(task, total=progress.total, completed=done, told=_told(progress))

            await _with_ticks(work, show, _BAR_S)
    else:
        await _with_ticks(work, lambda: _log(progress), _LOG_S)


def summary(progress: Progress) -> list[str]:
    """Say what a run has done, in lines: the whole, what it cost, and its errors by kind."""
    progress.engine.sample()
    before = f", {progress.num_skipped} before" if progress.num_skipped else ""
    passes = progress.engine.tokens_per_pass
    num_answered = progress.num_done - progress.num_failed
    lines = [
        f"{num_answered} answered, {progress.num_failed} failed{before}; "
        f"{progress.num_tokens} tokens in {clock(progress.seconds)} "
        f"({progress.tokens_per_second:.1f} tokens/s"
        + ("" if passes is None else f", {passes:.2f} tokens per target pass")
        + ")"
    ]
    if progress.cost is not None:
        per_million = progress.cost_per_million
        more = "" if per_million is None else f", {per_million:.4f} per million answer tokens"
        lines.append(f"cost {progress.cost:.4f}{more}")
    lines += [f"  {count} x {code}" for code, count in progress.errors.most_common()]
    return lines


async def _with_ticks(work: Awaitable[None], tick: Callable[[], None], seconds: float) -> None:
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=seconds)
            if not task.done():
                tick()
    finally:
        task.cancel()
    await task


def _told(progress: Progress) -> str:
    """Write the figures as they stand behind the bar."""
    return ", ".join(_WORDS[name].format(value) for name, value in progress.figures().items())


def _log(progress: Progress) -> None:
    told = " ".join(f"{name}={value}" for name, value in progress.figures().items())
    logger.info("batch_progress %s", told)
