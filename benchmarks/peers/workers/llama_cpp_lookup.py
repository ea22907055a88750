"""llama-cpp-python's `Llama` with drafts looked up in the text so far; one request at a time."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.protocol import Load, Run, work
from benchmarks.peers.workers.llama_cpp_batch import KV_TYPES, settings

_NUM_DRAFTS = 2
"""What its documentation recommends on CPUs."""


class Lookup:
    """The high-level class and its own drafter."""

    def __init__(self, load: Load) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(Path(load.model), path, load.dtype)
            self._model = llama_cpp.Llama(
                str(path),
                n_ctx=load.max_model_len,
                n_threads=load.threads,
                n_threads_batch=load.threads,
                type_k=KV_TYPES[load.dtype],
                type_v=KV_TYPES[load.dtype],
                use_mmap=False,
                draft_model=LlamaPromptLookupDecoding(num_pred_tokens=_NUM_DRAFTS),
                verbose=False,
            )
        self.settings = {**settings(load), "one_at_a_time": True, "num_drafts": _NUM_DRAFTS}
        self.versions = {"llama-cpp-python": llama_cpp.__version__}

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt, one after the other."""
        answers = []
        for number, prompt in enumerate(run.prompts):
            # What it keeps of the last prompt would be a prefix cache.
            self._model.reset()
            self._model.set_seed(run.seed + number)
            tokens = self._model.generate(
                prompt, temp=run.temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0
            )
            answers.append(list(itertools.islice(tokens, run.max_tokens)))
        return answers


if __name__ == "__main__":
    work(Lookup)
