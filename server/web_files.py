"""The playground's files, read once: what a browser gets from `/` and below `/web/`.

Their paths are known before anybody asks, so that no path of a request is ever looked up on disk,
and so that exactly these may be had without a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE_PATH = "/"
PREFIX = "/web/"
_FOLDER = Path(__file__).resolve().parent / "web"
_PAGE = "index.html"
# What a browser may be sent; licences lie beside what they are of.
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file as it is sent.

    Attributes:
        content: its bytes.
        media_type: what they are.
        etag: changes with them, in the quotes that the header has.
    """

    content: bytes
    media_type: str
    etag: str

    @property
    def is_page(self) -> bool:
        """Whether a browser shows it as a page of its own."""
        return self.media_type.startswith("text/html")


def read_web_files(folder: Path = _FOLDER) -> Mapping[str, WebFile]:
    """Give every file that is sent, by the path of its request."""
    return {
        _path_of(file.relative_to(folder)): _read(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in _MEDIA_TYPES
    }


def _path_of(name: Path) -> str:
    return PAGE_PATH if name.as_posix() == _PAGE else PREFIX + name.as_posix()


def _read(file: Path) -> WebFile:
    content = file.read_bytes()
    digest = hashlib.blake2b(content, digest_size=12).hexdigest()
    return WebFile(content, _MEDIA_TYPES[file.suffix], f'"{digest}"')
