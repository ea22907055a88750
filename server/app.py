"""Puts the HTTP application together; it starts nothing and loads nothing."""

from __future__ import annotations

from fastapi import FastAPI

from server.config import ServerConfig
from server.errors import install_error_handlers
from server.openapi import install_openapi
from server.request_id import RequestIdMiddleware
from server.responses.store import ResponseStore
from server.routes import (
    chat,
    completions,
    health,
    messages,
    metrics,
    models,
    responses,
    server_info,
    tokenize,
)
from server.served import Served
from server.stored_chats import ChatStore
from server.streaming import OpenStreams
from server.synthetic_mark import SyntheticMarkMiddleware


def create_app(served: Served, config: ServerConfig | None = None) -> FastAPI:
    """Make the application that serves one model.

    Args:
        served: the model; it may still be loading.
        config: the server's settings; None = the defaults.
    """
    app = FastAPI(
        title="Outdraft",
        description="OpenAI-style text generation with speculative decoding.",
        redirect_slashes=False,
    )
    app.state.served = served
    app.state.config = config or ServerConfig()
    app.state.chats = ChatStore()
    app.state.responses = ResponseStore()
    app.state.open_streams = OpenStreams()
    app.add_middleware(RequestIdMiddleware)
    rates = served.config.speculation.acceptance_rates
    if rates:
        app.add_middleware(SyntheticMarkMiddleware, rates=rates)
    install_error_handlers(app)
    for room in (chat, completions, responses, messages, tokenize):
        app.include_router(room.router)
    for room in (models, health, metrics, server_info):
        app.include_router(room.router)
    install_openapi(app)
    return app
