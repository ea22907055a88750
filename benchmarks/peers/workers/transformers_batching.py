"""transformers' continuous batching; the next request begins when one ends."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from transformers import ContinuousBatchingConfig

from benchmarks.peers.protocol import Load, Run, work
from benchmarks.peers.workers.transformers_generate import generation_config, load_model, versions

_PAGE_TOKENS = 256
_BATCH_TOKENS = 2048
_TIMEOUT_S = 600


class Batching:
    """A model that answers through its continuous-batching manager."""

    def __init__(self, load: Load) -> None:
        torch.set_num_threads(load.threads)
        self._model = load_model(load.model, load.dtype)
        pages = -(-load.max_model_len // _PAGE_TOKENS) + 1
        # Left alone, it would take nine tenths of the machine's memory, and fill them.
        self._options: dict[str, Any] = {
            "page_size": _PAGE_TOKENS,
            "num_blocks": pages * load.max_concurrency,
            "max_batch_tokens": _BATCH_TOKENS,
            "max_requests_per_batch": load.max_concurrency,
            "allow_block_sharing": False,
        }
        self._manager: Any = None
        self._temperature: float | None = None
        self.settings = {"threads": torch.get_num_threads(), **self._options}
        self.versions = versions()

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt.

        Raises:
            RuntimeError: an answer failed, or none came.
        """
        manager = self._manager_of(run)
        waiting = iter(run.prompts)
        names: list[str] = []
        answers: dict[str, list[int]] = {}
        while len(answers) < len(run.prompts):
            num_free = run.concurrency - (len(names) - len(answers))
            for prompt in islice(waiting, num_free):
                names.append(manager.add_request(prompt, max_new_tokens=run.max_tokens))
            result = manager.get_result(timeout=_TIMEOUT_S)
            if result is None or result.error is not None:
                raise RuntimeError("no answer" if result is None else str(result.error))
            if result.is_finished():
                answers[result.request_id] = list(result.generated_tokens)
        return [answers[name] for name in names]

    def _manager_of(self, run: Run) -> Any:
        """Give the manager, which lives as long as the temperature stays."""
        if self._temperature != run.temperature:
            if self._manager is not None:
                self._manager.stop(block=True)
            self._manager = self._model.init_continuous_batching(
                generation_config=generation_config(run),
                continuous_batching_config=ContinuousBatchingConfig(**self._options),
            )
            self._manager.warmup()
            self._manager.start()
            self._temperature = run.temperature
        return self._manager


if __name__ == "__main__":
    work(Batching)
