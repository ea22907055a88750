"""Where a checkpoint's tensors lie in its safetensors files; nothing of models.

A file is eight bytes of length, a JSON header of that length, and the tensors' bytes.
Source: the format's description in huggingface/safetensors, README.md.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        path: its file.
        offset: bytes from the file's beginning to its first.
        num_bytes: how many it has.
        dtype: of its numbers.
        shape: of the tensor.
    """

    path: Path
    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor] | None:
    """Find all tensors of a folder's checkpoint by name.

    Returns:
        None where there is no whole checkpoint of safetensors, or a tensor is of another kind.
    """
    try:
        found: dict[str, StoredTensor] = {}
        for path in _files(folder):
            found |= _tensors_of(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return found or None


def _files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size:
            raise ValueError("its header is longer than the file")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _tensor(path, 8 + length, size, entry) for name, entry in header.items()}


def _tensor(path: Path, base: int, size: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if base + end > size or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("its numbers do not lie in the file")
    return StoredTensor(path, base + begin, end - begin, dtype, shape)
