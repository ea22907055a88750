"""Shares a training run among worker processes: each takes some rows, gradients are averaged.

Knows rank, size and one exchange per step, so workers on a busy machine wait for each other
rarely. Refuses to know models and clocks. Started by `torchrun`; without it there is one worker.
"""

from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

LONGEST_WAIT = timedelta(hours=12)


def join_workers() -> None:
    """Join the other workers, if `torchrun` started this process."""
    if distributed.is_torchelastic_launched():
        distributed.init_process_group(timeout=LONGEST_WAIT)


class Workers:
    """The processes of this run, seen from one of them."""

    def __init__(self) -> None:
        """Join the initialised process group, or work alone."""
        is_shared = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if is_shared else 0
        self.size = distributed.get_world_size() if is_shared else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and shows progress."""
        return self.rank == 0

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine, and of its accelerator."""
        return distributed.get_node_local_rank(fallback_rank=0) if self.size > 1 else 0

    def wait(self) -> None:
        """Wait until every worker has come here."""
        if self.size > 1:
            distributed.barrier()

    def share(self, rows: Tensor) -> Tensor:
        """Give this worker's rows of a batch [num_rows, ...]."""
        return rows[self.rank :: self.size]

    @torch.no_grad()
    def average(self, parameters: Iterable[nn.Parameter], *values: float) -> list[float]:
        """Average the gradients in place, and some numbers, over all workers in one exchange."""
        if self.size == 1:
            return list(values)
        gradients = [p.grad for p in parameters if p.grad is not None]
        numbers = torch.tensor(values, device=gradients[0].device, dtype=torch.float32)
        flat = torch.cat([*(g.flatten() for g in gradients), numbers])
        distributed.all_reduce(flat)
        flat /= self.size
        parts = flat.split([*(g.numel() for g in gradients), len(values)])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        averaged: list[float] = parts[-1].tolist()
        return averaged
