"""transformers' `generate`: a batch from its beginning to its end, padded on the left."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.peers.protocol import Load, Run, work
from benchmarks.peers.workers.flights import flights

_NO_TOKEN = -1
_NUM_LOOKUP_TOKENS = 10


class Generate:
    """A model and the keywords of one way to call `generate`."""

    def __init__(self, load: Load) -> None:
        torch.set_num_threads(load.threads)
        self._model = load_model(load.model, load.dtype)
        self._keywords: dict[str, Any] = {}
        self._options: dict[str, Any] = {}
        self._is_alone = False
        if load.way == "static cache":
            self._options["cache_implementation"] = "static"
        elif load.way == "compiled":
            self._options["cache_implementation"] = "static"
            self._model.forward = torch.compile(self._model.forward)
        elif load.way == "assisted":
            assert load.draft is not None, "assisted generation needs a draft"
            self._keywords["assistant_model"] = load_model(load.draft, load.dtype)
            self._is_alone = True  # it takes one sequence at a time
        elif load.way == "prompt lookup":
            self._options["prompt_lookup_num_tokens"] = _NUM_LOOKUP_TOKENS
            self._is_alone = True
        self.settings = {
            "attn_implementation": "sdpa",
            "one_at_a_time": self._is_alone,
            "threads": torch.get_num_threads(),
            **self._options,
        }
        self.versions = versions()

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt, a flight after the other."""
        if run.temperature:
            torch.manual_seed(run.seed)
        size = 1 if self._is_alone else run.concurrency
        return [
            answer
            for flight in flights(run.prompts, size)
            for answer in self._generate(flight, run)
        ]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], run: Run) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=generation_config(run, **self._options),
            **self._keywords,
        )
        answers: list[list[int]] = output[:, longest:].tolist()
        return answers


def load_model(name: str, dtype: str) -> Any:
    """Load a model for inference on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    return model.eval().requires_grad_(False)


def versions() -> dict[str, str]:
    """Give the versions that count."""
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def generation_config(run: Run, **options: Any) -> GenerationConfig:
    """Give settings of answers that end by their length alone."""
    drawn: dict[str, Any] = {"do_sample": False}
    if run.temperature:
        drawn = {"do_sample": True, "temperature": run.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=run.max_tokens,
        eos_token_id=_NO_TOKEN,
        pad_token_id=0,
        **drawn,
        **options,
    )


if __name__ == "__main__":
    work(Generate)
