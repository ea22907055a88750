"""Where a response cache is on disk, and the secret beside it."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from engine.kept_files import cache_folder
from server.config import IN_MEMORY, ServerConfig

_SECRET_BYTES = 32

logger = logging.getLogger(__name__)


def cache_path(config: ServerConfig) -> Path | None:
    """Give the file of the settings' response cache; None where it is in memory alone, or off."""
    if not config.response_cache or config.response_cache_path == IN_MEMORY:
        return None
    if config.response_cache_path is not None:
        return Path(config.response_cache_path).expanduser()
    return cache_folder() / "responses.sqlite3"


def lasting_secret(path: Path) -> bytes:
    """Give the secret beside a response cache, made when it is first wanted.

    It keys the digests of API keys, so that callers find what they have asked for before the server
    was started anew. Where it cannot be kept, it lasts as long as this process.

    Args:
        path: of the response cache.
    """
    place = path.with_name(f"{path.name}.secret")
    try:
        return _read(place)
    except OSError as error:
        logger.warning("response_cache_secret_not_kept path=%s error=%s", place, error)
        return secrets.token_bytes(_SECRET_BYTES)


def _read(place: Path) -> bytes:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not place.exists():
        _write(place, secrets.token_bytes(_SECRET_BYTES))
    secret = place.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise OSError(f"it has {len(secret)} bytes instead of {_SECRET_BYTES}; delete it")
    return secret


def _write(place: Path, secret: bytes) -> None:
    """Write the secret for this user alone; whoever comes first has made it."""
    partial = place.with_name(f"{place.name}.{os.getpid()}")
    number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(number, secret)
    finally:
        os.close(number)
    try:
        os.link(partial, place)
    except FileExistsError:
        pass
    finally:
        partial.unlink()
