"""Who calls: API keys, kept as digests alone, and what follows from the one that a caller has.

Digests are keyed by a number that no other process has, so what logs or memory dumps show of them
cannot be looked up; a response cache keeps that number, in a file of its own, for the next process.
It knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from server.config import ServerConfig
from server.response_cache.place import cache_path, lasting_secret

API_KEYS_VARIABLE = "OUTDRAFT_API_KEYS"
ADMIN_KEYS_VARIABLE = "OUTDRAFT_ADMIN_KEYS"
_DIGEST_BYTES = 32
_SHORT_KEY = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        tenant: what has stored answers of its own: a key's digest; empty without keys.
        is_isolated: whether others, who must not share its cached prefixes, call too.
        is_admin: whether the key may do everything.
        account: under what its calls are counted; empty = not at all.
    """

    tenant: str = ""
    is_isolated: bool = False
    is_admin: bool = False
    account: str = ""

    def cache_salt(self, given: str) -> str:
        """Give the salt under which prefixes are cached for a request of this caller."""
        if not self.is_isolated:
            return given
        return hashlib.blake2b(f"{self.tenant}\0{given}".encode(), digest_size=16).hexdigest()


ANYBODY = Caller()


class KeyRing:
    """The keys that open a server; with none of a kind, that kind of path is open to all.

    Args:
        api_keys: may use the API.
        admin_keys: may do everything.
        secret: keys their digests; None = a fresh one.
    """

    def __init__(
        self,
        api_keys: Iterable[str] = (),
        admin_keys: Iterable[str] = (),
        secret: bytes | None = None,
    ) -> None:
        self._secret = secret or secrets.token_bytes(_DIGEST_BYTES)
        admin = {self._digest(key) for key in admin_keys}
        api = {self._digest(key) for key in api_keys} - admin
        self._digests = [(digest, digest in admin) for digest in sorted(api | admin)]
        self.has_api_keys = bool(api)
        self.has_admin_keys = bool(admin)

    @property
    def is_empty(self) -> bool:
        """Whether everything is open."""
        return not self._digests

    @property
    def num_tenants(self) -> int:
        """Callers that are told apart: one per key, and those without one where they may call."""
        return len(self._digests) + (not self.has_api_keys)

    def find(self, keys: Iterable[str]) -> Caller | None:
        """Give whose key one of these is; None when nobody has it.

        It takes as long for a wrong key as for a right one, wherever that is on the ring.
        """
        found: tuple[bytes, bool] | None = None
        for key in keys:
            asked = self._digest(key)
            for digest, is_admin in self._digests:
                if hmac.compare_digest(digest, asked):
                    found = digest, is_admin
        if found is None:
            return None
        tenant = found[0].hex()[:_DIGEST_BYTES]
        is_isolated = self.num_tenants > 1
        return Caller(tenant, is_isolated=is_isolated, is_admin=found[1], account=f"key:{tenant}")

    def _digest(self, key: str) -> bytes:
        given = key.encode(errors="surrogateescape")
        return hashlib.blake2b(given, key=self._secret, digest_size=_DIGEST_BYTES).digest()


def read_keys(config: ServerConfig, environment: MutableMapping[str, str] | None = None) -> KeyRing:
    """Read the keys of flags, file and environment; from the environment they are taken away.

    What this process starts later, the engine among it, does not see them there.

    Args:
        config: the flags.
        environment: where the variables are; None = nowhere.

    Raises:
        ConfigError: a key that no header can carry, or a file without keys.
    """
    taken = {} if environment is None else environment
    api = [*config.api_key, *_words(taken.pop(API_KEYS_VARIABLE, ""))]
    if config.api_key_file is not None:
        api += _read_file(config.api_key_file)
    admin = [*config.admin_key, *_words(taken.pop(ADMIN_KEYS_VARIABLE, ""))]
    for name, keys in (("api_key", api), ("admin_key", admin)):
        for key in keys:
            _check(name, key)
        if any(len(key) < _SHORT_KEY for key in keys):
            logger.warning("short_key kind=%s min_length=%d", name, _SHORT_KEY)
    path = cache_path(config) if api or admin else None
    return KeyRing(api, admin, None if path is None else lasting_secret(path))


def _read_file(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: {path!r} cannot be read ({error}).") from error
    keys = [text for line in lines if (text := line.partition("#")[0].strip())]
    if not keys:
        # Without a key everything would be open, which nobody means who names a file.
        raise ConfigError(f"api_key_file: {path!r} has no keys.")
    if Path(path).stat().st_mode & 0o077:
        logger.warning("key_file_readable_by_others file=%r", path)
    return keys


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]


def _check(name: str, key: str) -> None:
    # The key itself is not repeated: errors are logged.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{name}: a key must be printable ASCII without spaces, and not empty.")
