"""Which corpus records never enter training, so that measurements may use them; no torch."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HELD_OUT_ONE_IN = 50


def is_held_out(record_id: str) -> bool:
    """Say whether a record never enters training (one in fifty, by hash of its id)."""
    digest = hashlib.sha256(record_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an xz-compressed JSON-lines file.

    Raises:
        FileNotFoundError: the file is missing.
    """
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
