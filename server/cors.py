"""Which web pages may call the server from a browser; none, unless they are named."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.config import ServerConfig
from server.request_id import HEADERS
from server.response_cache.cache_policy import HEADER as CACHE_HEADER

_EXPOSED = (
    *HEADERS,
    CACHE_HEADER,
    "retry-after",
    "retry-after-ms",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)

logger = logging.getLogger(__name__)


def install_cors(app: FastAPI, config: ServerConfig, *, has_keys: bool) -> None:
    """Let pages of the named origins call the app; they send keys themselves, not as cookies."""
    if not config.cors_origin:
        return
    if "*" in config.cors_origin and not has_keys:
        logger.warning("cors_open_to_every_page keys=none")
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(config.cors_origin),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=list(_EXPOSED),
    )
