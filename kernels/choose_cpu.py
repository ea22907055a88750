"""Each row's largest logit and its lead, by C functions that pass over the logits once or twice.

`engine/sampling/logits_processors.py` says what is chosen.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch

from kernels.native_library import native_library

SOURCE = Path(__file__).with_suffix(".c")


@lru_cache
def _library() -> ctypes.CDLL | None:
    library = native_library(SOURCE)
    if library is not None:
        for name in ("choose_rows", "lead_rows"):
            function = getattr(library, name)
            sizes = [ctypes.c_int64] * 3
            function.argtypes = (ctypes.c_void_p, *sizes, ctypes.c_void_p, ctypes.c_void_p)
            function.restype = None
    return library


def serves(logits: torch.Tensor) -> bool:
    """Whether this machine has the functions for rows [num_rows, vocab]."""
    return (
        logits.device.type == "cpu"
        and logits.dtype == torch.float32
        and logits.stride(1) == 1
        and _library() is not None
    )


def choose_on_cpu(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take each row's largest logit; see `logits_processors.choose`."""
    library = _library()
    assert library is not None, "asked for where it does not serve"
    num_rows, vocab_size = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64)
    is_invalid = torch.empty(num_rows, dtype=torch.bool)
    library.choose_rows(
        logits.data_ptr(), num_rows, vocab_size, logits.stride(0),
        token_ids.data_ptr(), is_invalid.data_ptr(),
    )  # fmt: skip
    return token_ids, is_invalid


def lead_on_cpu(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Give the leads of tokens; see `logits_processors.margins`."""
    library = _library()
    assert library is not None, "asked for where it does not serve"
    num_rows, vocab_size = logits.shape
    leads = torch.empty(num_rows)
    library.lead_rows(
        logits.data_ptr(), num_rows, vocab_size, logits.stride(0),
        token_ids.data_ptr(), leads.data_ptr(),
    )  # fmt: skip
    return leads
