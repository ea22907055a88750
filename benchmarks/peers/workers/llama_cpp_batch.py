"""llama.cpp through its batch interface: a sequence per request, the next begins when one ends."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp

from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.protocol import Load, Run, work

KV_TYPES = {"float32": llama_cpp.GGML_TYPE_F32, "bfloat16": llama_cpp.GGML_TYPE_F16}
"""Of keys and values: float32 as the weights are, float16 (its default) beside bfloat16."""
_BATCH_TOKENS = 2048


@dataclass(slots=True)
class Sequence:
    """A request in flight.

    Attributes:
        number: of its prompt.
        sampler: draws its tokens.
        pending: tokens that have not been computed.
        length: tokens that have been.
        answer: what it wrote.
        row: of the batch, whose logits are its next token's.
    """

    number: int
    sampler: Any
    pending: list[int]
    length: int = 0
    answer: list[int] = field(default_factory=list)
    row: int | None = None


class Batched:
    """A context with a part of the cache for every request in flight."""

    def __init__(self, load: Load) -> None:
        llama_cpp.llama_backend_init()
        self._model = load_model(load)
        self._context = llama_cpp.llama_init_from_model(self._model, _context(load))
        assert self._context is not None, "llama.cpp made no context"
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self.settings = settings(load)
        self.versions = {"llama-cpp-python": llama_cpp.__version__}

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt."""
        answers: list[list[int]] = [[] for _ in run.prompts]
        waiting = iter(enumerate(run.prompts))
        slots: dict[int, Sequence] = {}
        while True:
            _admit(run, waiting, slots)
            if not slots:
                return answers
            self._compute(slots)
            for slot, sequence in list(slots.items()):
                if sequence.row is None:
                    continue
                token = llama_cpp.llama_sampler_sample(
                    sequence.sampler, self._context, sequence.row
                )
                sequence.answer.append(token)
                sequence.pending = [token]
                if len(sequence.answer) == run.max_tokens:
                    answers[sequence.number] = sequence.answer
                    self._end(slots, slot)

    def _compute(self, slots: dict[int, Sequence]) -> None:
        """Compute what is pending, as far as it fits into a batch."""
        batch, rows = self._batch, 0
        for slot, sequence in slots.items():
            fitting = sequence.pending[: _BATCH_TOKENS - rows]
            sequence.pending = sequence.pending[len(fitting) :]
            for token in fitting:
                batch.token[rows] = token
                batch.pos[rows] = sequence.length
                batch.n_seq_id[rows] = 1
                batch.seq_id[rows][0] = slot
                batch.logits[rows] = False
                sequence.length += 1
                rows += 1
            sequence.row = rows - 1 if fitting and not sequence.pending else None
            if sequence.row is not None:
                batch.logits[sequence.row] = True
        batch.n_tokens = rows
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status} for {rows} tokens")

    def _end(self, slots: dict[int, Sequence], slot: int) -> None:
        llama_cpp.llama_sampler_free(slots.pop(slot).sampler)
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)


def load_model(load: Load) -> Any:
    """Write the checkpoint as GGUF and load it whole; the file is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(Path(load.model), path, load.dtype)
        params = llama_cpp.llama_model_default_params()
        params.use_mmap = False
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model is not None, "llama.cpp cannot read the file"
    return model


def settings(load: Load) -> dict[str, Any]:
    """Give what is set, and what the library says of how it was built."""
    return {
        "weights": load.dtype,
        "kv_cache": "float32" if load.dtype == "float32" else "float16",
        "threads": load.threads,
        "system": llama_cpp.llama_print_system_info().decode(),
    }


def _context(load: Load) -> Any:
    params = llama_cpp.llama_context_default_params()
    # Parts of the cache are of equal length, in steps of 256.
    params.n_ctx = -(-load.max_model_len // 256) * 256 * load.max_concurrency
    params.n_seq_max = load.max_concurrency
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.n_threads = params.n_threads_batch = load.threads
    params.type_k = params.type_v = KV_TYPES[load.dtype]
    params.no_perf = True
    return params


def _admit(run: Run, waiting: Iterator[tuple[int, list[int]]], slots: dict[int, Sequence]) -> None:
    free = [slot for slot in range(run.concurrency) if slot not in slots]
    for slot, (number, prompt) in zip(free, itertools.islice(waiting, len(free)), strict=False):
        slots[slot] = Sequence(number, _sampler(run, number), list(prompt))


def _sampler(run: Run, number: int) -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if run.temperature:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(run.temperature))
        llama_cpp.llama_sampler_chain_add(
            chain, llama_cpp.llama_sampler_init_dist(run.seed + number)
        )
    else:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
    return chain


if __name__ == "__main__":
    work(Batched)
