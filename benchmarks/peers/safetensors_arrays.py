"""Reads a checkpoint's safetensors as numpy arrays; numpy itself does not know bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_KINDS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_float32(folder: Path) -> Iterator[tuple[str, Array]]:
    """Give every tensor of a folder's safetensors files by name, as float32.

    Raises:
        ValueError: there is none, or a tensor is of another type.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds no safetensors.")
    for path in files:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(content[:8].view(np.uint64)[0])
        header = json.loads(bytes(content[8 : 8 + length]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in _KINDS:
                raise ValueError(f"{name}: {entry['dtype']} is not one of {', '.join(_KINDS)}.")
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            # Copied, since a tensor need not begin where its type is aligned.
            stored = np.frombuffer(bytes(content[start:end]), dtype=_KINDS[entry["dtype"]])
            yield name, _as_float32(stored).reshape(entry["shape"])


def as_bfloat16_bits(values: Array) -> Array:
    """Round float32 to bfloat16, halves to even; returns its bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _as_float32(stored: Array) -> Array:
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)
