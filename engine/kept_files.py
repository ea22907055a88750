"""What is measured once per machine and kept on disk, as JSON in our part of the user's caches.

It refuses to know what is kept; whoever keeps it names it so that another model, device or version
has another name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Give our folder among those of the user's caches; it need not be there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "outdraft"


class KeptFile:
    """One file of the cache folder.

    Args:
        kind: what it holds.
        origin: everything that its content depends on.

    Attributes:
        path: where it is.
    """

    def __init__(self, kind: str, origin: Iterable[str]) -> None:
        key = hashlib.blake2b("|".join(origin).encode(), digest_size=10).hexdigest()
        self.path = cache_folder() / f"{kind}-{key}.json"

    def read(self) -> Any:
        """Give what was kept; None if there is nothing, or nothing that can be read."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, content: Any) -> None:
        """Keep `content`; where that fails, only a warning is left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            logger.warning("not_kept path=%s error=%s", self.path, error)
