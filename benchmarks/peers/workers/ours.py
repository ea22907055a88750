"""Outdraft in its own process: the engine of the checkout, driven inline."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.protocol import Load, Run, work
from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.door import make_requests
from engine.kv_cache.storage import bytes_per_block
from engine.model_pair import ModelPair, load_pair
from engine.sampling_params import SamplingParams
from engine.version import __version__

_TOKEN_DRAFTER = "suffix"


class Ours:
    """The engine with room for all requests in flight, and no prefix cache."""

    def __init__(self, load: Load) -> None:
        speculates = load.way != "off"
        options: dict[str, Any] = {
            "model": load.model,
            "dtype": load.dtype,
            "device": "cpu",
            "threads": load.threads,
            "max_model_len": load.max_model_len,
            "max_num_seqs": load.max_concurrency,
            "prefix_caching": False,
            "speculation": "auto" if speculates else "off",
        }
        if speculates:
            options["draft"] = load.draft or _TOKEN_DRAFTER
        self.versions = {"outdraft": __version__, "torch": torch.__version__}
        # Folders are this machine's own; what is in them is told by their names.
        folders = {name: Path(options[name]).name for name in ("model", "draft") if name in options}
        self.settings = options | folders
        config = apply_options(EngineConfig(), options)
        models = load_pair(config)
        memory = _cache_bytes(models, config.cache.block_size, load)
        self._core = EngineCore(apply_options(config, {"kv_cache_memory": str(memory)}), models)
        self._ids = itertools.count()

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt; the next one begins when one ends."""
        answers: list[list[int]] = [[] for _ in run.prompts]
        waiting, in_flight = iter(enumerate(run.prompts)), dict[str, int]()
        self._admit(run, waiting, in_flight)
        while in_flight:
            for delta in self._core.step():
                answers[in_flight[delta.request_id]].extend(delta.new_token_ids)
                if delta.finish_reason is not None:
                    del in_flight[delta.request_id]
            self._admit(run, waiting, in_flight)
        return answers

    def _admit(
        self, run: Run, waiting: Iterator[tuple[int, list[int]]], in_flight: dict[str, int]
    ) -> None:
        for number, prompt in itertools.islice(waiting, run.concurrency - len(in_flight)):
            params = SamplingParams(
                temperature=run.temperature,
                seed=run.seed + number,
                max_tokens=run.max_tokens,
                ignore_eos=True,
            )
            name, info = f"request-{next(self._ids)}", self._core.info
            request = make_requests(prompt, params, request_id=name, info=info)[0]
            in_flight[request.request_id] = number
            self._core.add_request(request)


def _cache_bytes(models: ModelPair, block_size: int, load: Load) -> int:
    """Give the bytes that all requests in flight need at their longest."""
    blocks = (-(-load.max_model_len // block_size) + 1) * load.max_concurrency + 1
    loaded = [model for model in (models.target, models.draft) if model is not None]
    return blocks * sum(bytes_per_block(m.layers, block_size, m.dtype) for m in loaded)


if __name__ == "__main__":
    work(Ours)
