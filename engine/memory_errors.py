"""What memory says when there is none left, and how a step that failed gives back what it held."""

from __future__ import annotations

import traceback

import torch

OUT_OF_MEMORY = (
    "The engine ran out of memory computing this request alone, token by token; it cannot go on. "
    "Shorten it, or start the engine with less kv_cache_memory."
)
# What libraries raise as a plain RuntimeError.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, and nothing else."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _WORDS)


def release_memory(error: BaseException, device: torch.device) -> None:
    """Drop what the failed step's frames still hold, and what the allocator keeps of it."""
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
