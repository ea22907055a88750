"""One training loop for every stage: bounded by steps or minutes, checkpointed, resumable.

Knows batches, a loss function, the optimisers and the clock. Refuses to know what the loss
means: pretraining and distillation hand in their own.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.training.optimizer import MuonWithAdamW, Rates
from engine.training.packing import RowStream, StreamState
from engine.training.workers import Workers

logger = logging.getLogger(__name__)

RECENT_STEPS = 20

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """The budget and the batches of one stage.

    Attributes:
        max_minutes: Wall-clock budget over all resumptions; None means no such bound.
        max_steps: Step budget; None means no such bound.
        batch_tokens: Tokens per optimiser step.
        length: Row length in tokens.
        long_length: Row length of the last part of the run.
        long_from: Progress at which the long rows begin.
        rates: Learning rates and schedule.
        clip: Largest gradient norm.
        checkpoint_minutes: Time between checkpoints.
        compile: Whether torch.compile fuses model and loss.
        autocast: Whether the forward pass runs in bfloat16.
    """

    max_minutes: float | None = None
    max_steps: int | None = None
    batch_tokens: int = 4096
    length: int = 512
    long_length: int = 1024
    long_from: float = 0.85
    rates: Rates = field(default_factory=Rates)
    clip: float = 1.0
    checkpoint_minutes: float = 3.0
    compile: bool = False
    autocast: bool = False

    def __post_init__(self) -> None:
        """Refuse a run without an end.

        Raises:
            ValueError: If neither bound is set.
        """
        if self.max_minutes is None and self.max_steps is None:
            raise ValueError("a plan needs max_minutes or max_steps, or training never ends")


class Trainer:
    """Runs a plan on a model and a stream; call `run` again on the same folder to resume."""

    def __init__(
        self,
        model: nn.Module,
        stream: RowStream,
        loss: LossFunction,
        plan: Plan,
        folder: Path,
        report: Callable[["Trainer"], None] = lambda trainer: None,
    ) -> None:
        """Prepare the run and load the checkpoint in `folder`, if there is one."""
        self.step = 0
        self.num_tokens = 0
        self.losses: list[float] = []
        self._elapsed_s = 0.0
        self._model, self._stream, self._loss, self._plan = model, stream, loss, plan
        self._report = report
        self._workers = Workers()
        self._device = next(model.parameters()).device
        self._optimizer = MuonWithAdamW(model, plan.rates)
        self._path = folder / "checkpoint.pt"
        if self._path.exists():
            self._load()

    @property
    def progress(self) -> float:
        """The larger spent fraction of the step and the time budget, in [0, 1]."""
        steps = self.step / self._plan.max_steps if self._plan.max_steps else 0.0
        minutes = self._elapsed_s / 60 / self._plan.max_minutes if self._plan.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    @property
    def recent_loss(self) -> float:
        """Mean loss of the last few steps, in nats."""
        recent = self.losses[-RECENT_STEPS:]
        return sum(recent) / max(1, len(recent))

    @property
    def tokens_per_s(self) -> float:
        """Training tokens per second over the whole run, compilation included."""
        return self.num_tokens / max(self._elapsed_s, 1e-9)

    def run(self, stop_after: int | None = None) -> None:
        """Train until the budget is spent, or for `stop_after` steps; save at the end."""
        loss = torch.compile(self._loss) if self._plan.compile else self._loss
        started, saved = time.monotonic() - self._elapsed_s, time.monotonic()
        steps = 0
        while self.progress < 1.0 and (stop_after is None or steps < stop_after):
            self._train_step(loss, started)
            steps += 1
            if not self._workers.is_first:
                continue
            self._report(self)
            if time.monotonic() - saved > 60 * self._plan.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
        if self._workers.is_first:
            self.save()

    def _train_step(self, loss_function: LossFunction, started: float) -> None:
        plan = self._plan
        length = plan.long_length if self.progress >= plan.long_from else plan.length
        inputs, labels = self._stream.next_batch(max(1, plan.batch_tokens // length), length)
        inputs, labels = self._workers.share(inputs), self._workers.share(labels)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=plan.autocast):
            loss = loss_function(self._model, inputs.to(self._device), labels.to(self._device))
        loss.backward()
        value, self._elapsed_s = self._workers.average(
            self._model.parameters(), loss.item(), time.monotonic() - started
        )
        nn.utils.clip_grad_norm_(self._model.parameters(), plan.clip)
        self._optimizer.step(self.step, self.progress)
        self.losses.append(value)
        self.step += 1
        self.num_tokens += int((labels >= 0).sum()) * self._workers.size

    def save(self) -> None:
        """Write the checkpoint; a crash in the middle leaves the old one whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "stream": asdict(self._stream.state),
            "step": self.step,
            "num_tokens": self.num_tokens,
            "elapsed_s": self._elapsed_s,
            "losses": self.losses,
        }
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._path)

    def _load(self) -> None:
        state = torch.load(self._path, map_location=self._device, weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._stream.state = StreamState(**state["stream"])
        self.step, self.num_tokens = state["step"], state["num_tokens"]
        self._elapsed_s, self.losses = state["elapsed_s"], state["losses"]
        logger.info("resumed path=%s step=%d", self._path, self.step)
