"""Which model answers, as far as it can be told apart from outside the engine's process.

Settings, version and limits are known; of the weights, which files they are: the commit of a hub
id, or names, sizes and times of change of a folder's files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from engine.config import ModelConfig
from engine.door import ModelInfo
from engine.version import __version__


class ModelIdentity:
    """Names what answers; asked anew whenever the engine has been started anew.

    Args:
        model: where the checkpoint is.
        fingerprint: changes with the engine's settings.
    """

    def __init__(self, model: ModelConfig, fingerprint: str) -> None:
        self._model = model
        self._fingerprint = fingerprint
        self._info: ModelInfo | None = None
        self._text = ""

    def of(self, info: ModelInfo) -> str:
        """Give the identity of the model that an engine says it has loaded."""
        if info is not self._info:
            self._info, self._text = info, self._describe(info)
        return self._text

    def _describe(self, info: ModelInfo) -> str:
        backends = sorted(info.attention_backends.items())
        parts = (__version__, self._fingerprint, info.model_name, backends, self._checkpoint())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _checkpoint(self) -> list[tuple[str, int, int]]:
        folder = _folder(self._model)
        return [] if folder is None else sorted(_files(folder))


def _folder(model: ModelConfig) -> Path | None:
    """Give where a checkpoint's files are; None where there are none."""
    if model.model is None:
        return None
    if Path(model.model).is_dir():
        return Path(model.model)
    try:
        found = try_to_load_from_cache(model.model, "config.json", revision=model.revision)
    except HFValidationError:
        return None
    # Its name has the commit, so another one is another folder with files of other times.
    return Path(found).parent if isinstance(found, str) else None


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Give the name, the size in bytes and the time of change in ns of each file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                status = entry.stat()
                yield entry.name, status.st_size, status.st_mtime_ns
