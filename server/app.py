"""Puts the HTTP application together; it starts nothing and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI

from server.access_log import CallMiddleware
from server.admission import QueueLimits, open_door
from server.auth import AuthMiddleware
from server.batches.data_dir import NoDataDir
from server.batches.service import BatchService
from server.config import ServerConfig
from server.cors import install_cors
from server.errors import install_error_handlers
from server.host_check import HostMiddleware, known_hosts
from server.keys import KeyRing, read_keys
from server.openapi import install_openapi
from server.rate_headers import RateLimitMiddleware
from server.rate_limits import CallerLimits
from server.request_id import RequestIdMiddleware
from server.response_cache.cache import ResponseCache
from server.response_cache.cache_metrics import CacheMetrics
from server.response_cache.cache_policy import CachePolicyMiddleware
from server.response_cache.model_identity import ModelIdentity
from server.response_cache.place import cache_path
from server.responses.store import ResponseStore
from server.routes import batches as batch_routes
from server.routes import (
    chat,
    completions,
    files,
    health,
    messages,
    metrics,
    models,
    responses,
    server_info,
    statistics,
    tokenize,
    web,
)
from server.security_headers import SecurityHeadersMiddleware
from server.served import Served
from server.statistics.channel import Channel, Channels
from server.stored_chats import ChatStore
from server.synthetic_mark import SyntheticMarkMiddleware
from server.tenant_stores import TenantStores
from server.web_files import WebFile, read_web_files

_NO_DATA_DIR = NoDataDir("It was started without a data directory.")


def create_app(
    served: Served,
    config: ServerConfig | None = None,
    keys: KeyRing | None = None,
    batches: BatchService | NoDataDir = _NO_DATA_DIR,
) -> FastAPI:
    """Make the application that serves one model.

    Args:
        served: the model; it may still be loading. It gets the limits of the settings.
        config: the server's settings; None = the defaults.
        keys: that callers must have; None = those of the settings.
        batches: keeps files and batches, once it is started.

    Raises:
        ConfigError: keys of the settings that cannot be used.
    """
    config = config or ServerConfig()
    keys = read_keys(config) if keys is None else keys
    app = FastAPI(
        title="Outdraft",
        description="OpenAI-style text generation with speculative decoding.",
        redirect_slashes=False,
        # Traces are `server.otlp`'s; FastAPI's own would tell every call twice.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.served = served
    app.state.config = config.without_secrets()
    app.state.batches = batches
    app.state.chats = TenantStores(ChatStore.of_share, keys.num_tenants)
    app.state.responses = TenantStores(ResponseStore.of_share, keys.num_tenants)
    app.state.statistics = Channels(
        lambda interval_s: Channel(served, interval_s, config.price_per_hour)
    )
    _set_limits(served, config)
    _set_cache(served, config)
    page = read_web_files() if config.web else {}
    _add_middleware(app, served, config, keys, page)
    install_error_handlers(app)
    for room in (chat, completions, responses, messages, tokenize, files, batch_routes):
        app.include_router(room.router)
    for room in (models, health, metrics, statistics, server_info):
        app.include_router(room.router)
    app.router.routes += web.web_routes(page)
    install_openapi(app)
    return app


def _set_limits(served: Served, config: ServerConfig) -> None:
    queue = QueueLimits(
        config.max_queue, config.max_queued_tokens, served.config.scheduler.max_num_seqs
    )
    callers = CallerLimits(
        config.max_requests_per_minute,
        config.max_tokens_per_minute,
        config.max_concurrent_requests,
    )
    engine = served.engine
    served.admission = open_door(lambda: engine.stats, served.metrics, queue, callers)
    served.request_timeout = config.request_timeout
    served.min_priority = config.min_priority


def _set_cache(served: Served, config: ServerConfig) -> None:
    """Make what remembers answers; whoever runs the server starts and closes it."""
    if not config.response_cache:
        return
    served.response_cache = ResponseCache(
        ModelIdentity(served.config.model, served.fingerprint),
        max_bytes=config.response_cache_bytes,
        max_age_s=config.response_cache_seconds,
        path=cache_path(config),
    )
    served.metrics.add(CacheMetrics(served.name, served.response_cache))


def _add_middleware(
    app: FastAPI,
    served: Served,
    config: ServerConfig,
    keys: KeyRing,
    files: Mapping[str, WebFile],
) -> None:
    """Add what every call goes through; what is added last sees it first."""
    if served.response_cache is not None:
        app.add_middleware(CachePolicyMiddleware, count=served.response_cache.count)
    accounts = served.admission.accounts
    if not accounts.limits.are_none:
        app.add_middleware(RateLimitMiddleware, accounts=accounts, metrics=served.metrics)
    app.add_middleware(AuthMiddleware, keys=keys, metrics=served.metrics, files=files)
    # A browser asks whether it may call before it sends a key.
    install_cors(app, config, has_keys=keys.has_api_keys)
    hosts = known_hosts(config, has_keys=keys.has_api_keys)
    if hosts is not None:
        app.add_middleware(HostMiddleware, hosts=hosts, metrics=served.metrics)
    rates = served.config.speculation.acceptance_rates
    if rates:
        app.add_middleware(SyntheticMarkMiddleware, rates=rates)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(CallMiddleware, served=served)
    app.add_middleware(RequestIdMiddleware)
