"""`outdraft serve`: the engine in its process, the HTTP server in this one."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from typing import Any

import uvicorn

from engine.client.engine_process import LOG_FORMAT
from engine.client.process import EngineClient
from engine.config import EngineConfig
from engine.config_files import DEMO, config_names, load_config, resolve
from engine.config_flags import (
    add_config_flags,
    add_option_flags,
    config_from_args,
    given_options,
)
from engine.errors import ConfigError
from engine.tokenization import Tokenizer, load_tokenizer
from server.app import create_app
from server.config import ServerConfig
from server.served import Served, make_served

_GRACE_S = 5

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Register the command and its flags."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model, with a draft if one is named, over an OpenAI-style API. "
        "No model means the demo pair.",
    )
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        help=f"settings to start from: a YAML file, or one of {', '.join(config_names())}",
    )
    add_option_flags(parser.add_argument_group("server"), ServerConfig)
    add_config_flags(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: a model cannot be loaded or served.
    """
    base = load_config(args.config) if args.config is not None else None
    asked = config_from_args(args, base)
    server_config = ServerConfig(**given_options(args, ServerConfig))
    logging.basicConfig(level=server_config.log_level.upper(), format=LOG_FORMAT)
    name = server_config.served_model_name or asked.model.model or DEMO
    return _run_loop(serve(resolve(asked), server_config, name))


async def serve(config: EngineConfig, server_config: ServerConfig, name: str) -> int:
    """Start the engine and the HTTP server, and serve until told to stop.

    The server listens at once and answers 503 until the engine is ready.

    Raises:
        OutdraftError: the engine could not load.
    """
    engine = EngineClient(config, log_level=server_config.log_level)
    served = make_served(engine, config, name=name)
    server = uvicorn.Server(_uvicorn_config(served, server_config))
    # uvicorn raises the signals that ended it once more when it is done; the engine is closed
    # first, so they must find this harmless handler again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    await engine.start()
    try:
        return await _serve_while_loading(server, served, config, server_config)
    finally:
        await engine.close()


async def _serve_while_loading(
    server: uvicorn.Server, served: Served, config: EngineConfig, server_config: ServerConfig
) -> int:
    loading = asyncio.create_task(_load(served, config, server_config))
    serving = asyncio.create_task(_serve_http(server))
    await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
    failure = loading.exception() if loading.done() else None
    if failure is not None:
        server.should_exit = True
    await serving
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    if failure is not None:
        raise failure
    return 0 if server.started else 1


async def _serve_http(server: uvicorn.Server) -> None:
    """Run uvicorn; where it cannot listen, it has said so and calls for an exit."""
    try:
        await server.serve()
    except SystemExit:
        logger.error("server_not_started host=%s port=%d", server.config.host, server.config.port)


async def _load(served: Served, config: EngineConfig, server_config: ServerConfig) -> None:
    tokenizer = await asyncio.to_thread(_load_tokenizer, config)
    info = await served.engine.wait_ready()
    served.install_tokenizer(tokenizer)
    logger.info(
        "ready model=%s url=http://%s:%d engine_pid=%s max_model_len=%d num_draft_tokens=%d",
        served.name,
        server_config.host,
        server_config.port,
        served.engine.pid,
        info.max_total_tokens,
        info.num_draft_tokens if info.has_draft else 0,
    )


def _load_tokenizer(config: EngineConfig) -> Tokenizer:
    model = config.model
    assert model.model is not None, "resolve() names a model"
    tokenizer = load_tokenizer(model.model, model.revision, model.trust_remote_code)
    if tokenizer is None:
        raise ConfigError(
            f"{model.model} has no tokenizer, and a server speaks text; "
            "use `outdraft generate` with prompt_token_ids."
        )
    return tokenizer


def _uvicorn_config(served: Served, server_config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(served),
        host=server_config.host,
        port=server_config.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


def _run_loop(main: Any) -> int:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return int(asyncio.run(main))
    return int(uvloop.run(main))
