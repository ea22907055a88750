"""Where a Triton kernel's tests run: in its interpreter, and on a GPU where there is one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

INTERPRETED = find_spec("triton") is not None and not torch.cuda.is_available()
DEVICES = [
    pytest.param(
        "cpu",
        id="interpreter",
        marks=pytest.mark.skipif(not INTERPRETED, reason="needs Triton, and no CUDA device"),
    ),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]
