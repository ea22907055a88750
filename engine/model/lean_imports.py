"""Imports transformers without what it needs for compiling and for many devices.

Its modules mark functions for torch's compiler, and import tensors that lie on many devices. Either
brings hundreds of modules of torch and all of sympy: a third of what starting takes. A process of
our own that does neither leaves them out. Whoever asks for the compiler later finds it as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Let imports inside find marks instead of the compiler, and a torch for one device.

    What they mark is not marked, so it is for processes in which nothing of theirs is compiled.
    """
    if _COMPILER in sys.modules:
        yield
        return
    distributed: Any = torch.distributed
    is_available = distributed.is_available
    sys.modules[_COMPILER] = _marks()
    vars(torch)["_dynamo"] = sys.modules[_COMPILER]
    distributed.is_available = _no
    try:
        yield
    finally:
        distributed.is_available = is_available
        del sys.modules[_COMPILER], vars(torch)["_dynamo"]


def _marks() -> ModuleType:
    """Make a package of the compiler's name and modules which itself can mark, and nothing else."""
    spec = find_spec(_COMPILER)
    assert spec is not None, "torch comes with its compiler"
    package = ModuleType(_COMPILER)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    for mark in ("disable", "allow_in_graph", "assume_constant_result"):
        setattr(package, mark, _mark)
    return package


def _mark(function: Any = None, *_: Any, **_options: Any) -> Any:
    """Give a function back; without one, what does so."""
    return _mark if function is None else function


def _no() -> bool:
    return False
