"""Shows how far a stage is: a bar on a terminal, plain log lines elsewhere.

Knows fractions and labels. Refuses to know what the stages do.
"""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.training.trainer import Trainer

logger = logging.getLogger(__name__)

LINE_EVERY_S = 30.0


class StageProgress:
    """The display of one stage, used as a context manager."""

    def __init__(self, stage: str, console: Console) -> None:
        """Name the stage and the console it is shown on."""
        self._stage = stage
        self._last_line_s = time.monotonic()
        self._bar = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.fields[stage]:>9}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[detail]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=1.0, stage=stage, detail="")

    def __enter__(self) -> "StageProgress":
        """Start the display."""
        logger.info("stage=%s started", self._stage)
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display, also after an error."""
        if self._bar:
            self._bar.stop()
        logger.info("stage=%s %s", self._stage, "finished" if kind is None else "stopped")

    def update(self, fraction: float, detail: str = "") -> None:
        """Show that `fraction` of the stage is done."""
        if self._bar:
            self._bar.update(self._task, completed=fraction, detail=detail)
        elif time.monotonic() - self._last_line_s > LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            logger.info("stage=%s progress=%.3f %s", self._stage, fraction, detail)

    def trainer(self, trainer: Trainer) -> None:
        """Show a training run."""
        detail = (
            f"step={trainer.step} loss={trainer.recent_loss:.4f} "
            f"tokens={trainer.num_tokens} tokens_per_s={trainer.tokens_per_s:.0f}"
        )
        self.update(trainer.progress, detail)
